"""What a checkpoint costs: how long training stands still for it, against a save that is waited for."""

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from perceiver_dist.benchmarks.one_rank import engine_of_one_rank
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.checkpoint.manifest import StoredFile, TrainingProgress, read_manifest
from perceiver_dist.checkpoint.retention import CheckpointList
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.run_config import DeepSpeedConfig, RunConfig, TrainConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.training.zero.async_save import CheckpointWriter
from perceiver_dist.training.zero.optimizer import adam_step
from pipelines.shards.source import SourceConfig

CONFIG = RunConfig(
    model=ModelConfig(
        latents=32,
        width=1024,
        cross_attends=2,
        self_attends_per_block=6,
        heads=8,
        image=ImageInput(32, 32, 3, patch=1, bands=64),
    ),
    sources=[SourceConfig("imagenet", "none", ["image"], num_classes=1000)],
    train=TrainConfig(micro_batch=1, lanes=1, num_workers=1),
    deepspeed=DeepSpeedConfig(zero_stage=2),
)
"""The paper's ImageNet model but for 32 latents, 2 cross-attends and small images, on one rank with ZeRO 2: 44
million parameters, and steps that take a second, not a minute, on a processor."""


@dataclass(frozen=True)
class MeasuredSave:
    """One measured save.

    Attributes:
        waited: Whether it was waited for, as synchronous saving does.
        stall: Seconds for which training stood still.
        stored: Seconds until the manifest was written.
        bytes: Size of the checkpoint's files.
    """

    waited: bool
    stall: float
    stored: float
    bytes: int


def measure_checkpoint(repeats: int = 5, folder: str | None = None) -> ResultTable:
    """Measure how long training stands still for a checkpoint of 44 million parameters.

    Args:
        repeats: Saves of each kind.
        folder: Path or URI to write to; by default a folder that is deleted.

    Raises:
        UserError: An option is not as it must be.
    """
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}, must be at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        saves = measure_saves(folder or scratch, repeats)
    whole = median(save.stall for save in saves if save.waited)
    rows = []
    for name, waited in (("waited for", True), ("beside training", False)):
        stalls = [save.stall for save in saves if save.waited == waited]
        figures = [median(stalls), min(stalls), max(stalls), median(stalls) / whole]
        stored = median(save.stored for save in saves if save.waited == waited)
        rows.append([name, *(f"{figure:.3f}" for figure in figures), f"{stored:.2f}", f"{saves[0].bytes:,}"])
    return ResultTable(("save", "stall s", "least", "most", "ratio", "stored after s", "bytes"), rows)


def measure_saves(folder: str, repeats: int, config: RunConfig = CONFIG) -> list[MeasuredSave]:
    """Train and save after every step, by turns without waiting and waiting for it.

    Args:
        folder: Path or URI to write to; two checkpoints are left in it.
        repeats: Saves of each kind; one more of each comes first and does not count.
        config: Model and engine, of one rank; learns from its first source, of images.

    Returns:
        Every save that counts.
    """
    with engine_of_one_rank(config) as engine:
        checkpoints = CheckpointList(RunFolder(folder), 2, None, lambda: None, lambda _: None)
        run = _Run(engine, config, RunFolder(folder), checkpoints)
        saves = [run.save(1 + number, waited=number % 2 == 1) for number in range(2 + 2 * repeats)]
    return saves[2:]


class _Run:
    """A training of one rank, with a list of checkpoints of its own in place of the tracker's."""

    def __init__(
        self, engine: Any, config: RunConfig, folder: RunFolder, checkpoints: CheckpointList
    ) -> None:
        self._engine = engine
        self._source = config.sources[0]
        self._image = config.model.image or ImageInput()
        self._folder = folder
        self._checkpoints = checkpoints
        self._group = checkpoints.choose_starting_point().group
        self._writer = CheckpointWriter(engine, folder)

    def save(self, step: int, waited: bool) -> MeasuredSave:
        """Save and take a step; without waiting, training stands still until it may change the weights."""
        progress = TrainingProgress(
            step, step, 1, self._engine.zero_optimization_stage(), adam_step(self._engine)
        )
        began = time.perf_counter()
        self._writer.save(progress, partial(self._tell, waited))
        if waited:
            self._writer.wait()
        stall = time.perf_counter() - began
        self._forward_and_backward()
        computed = time.perf_counter()
        self._writer.wait_for_copy()
        stall += time.perf_counter() - computed
        self._engine.step()
        self._writer.wait()
        files = read_manifest(self._folder.checkpoint(step)).files
        return MeasuredSave(waited, stall, self._stored_at - began, sum(file.bytes for file in files))

    def _tell(self, waited: bool, progress: TrainingProgress, outcome: StoredFile | str) -> None:
        self._checkpoints.rank_saved(self._group, 0, waited, progress, outcome)
        self._stored_at = time.perf_counter()

    def _forward_and_backward(self) -> None:
        shape = (1, self._image.height, self._image.width, self._image.channels)
        device = self._engine.device
        images = {"image": torch.randint(0, 256, shape, dtype=torch.uint8, device=device)}
        present = {"image": torch.ones(1, dtype=torch.bool, device=device)}
        logits = self._engine(images, present, self._source.name)
        labels = torch.zeros(1, dtype=torch.long, device=device)
        self._engine.backward(functional.cross_entropy(logits, labels))
