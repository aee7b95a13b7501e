"""Benchmark of checkpoints: how long a save stalls training, asynchronous against synchronous."""

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from perceiver_dist.benchmarks.one_rank import single_rank_engine
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
"""The paper's ImageNet model with 32 latents, 2 cross-attends and small images, on one rank with ZeRO 2: still 44
million parameters, but steps that take a second instead of a minute on a CPU."""


@dataclass(frozen=True)
class MeasuredSave:
    """One measured save.

    Attributes:
        synchronous: Whether training waited until the checkpoint was stored.
        stall: Seconds for which training was stalled.
        stored: Seconds until the manifest was written.
        bytes: Size of the checkpoint's files.
    """

    synchronous: bool
    stall: float
    stored: float
    bytes: int


def measure_checkpoint(repeats: int = 5, folder: str | None = None) -> ResultTable:
    """Measure how long a checkpoint of 44 million parameters stalls training.

    Args:
        repeats: Measured saves of each kind.
        folder: Path or URI to write to; by default a temporary folder.

    Raises:
        UserError: An option is out of range.
    """
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}, must be at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        saves = measure_saves(folder or scratch, repeats)
    baseline = median(save.stall for save in saves if save.synchronous)
    rows = []
    for name, synchronous in (("synchronous", True), ("asynchronous", False)):
        stalls = [save.stall for save in saves if save.synchronous == synchronous]
        figures = [median(stalls), min(stalls), max(stalls), median(stalls) / baseline]
        stored = median(save.stored for save in saves if save.synchronous == synchronous)
        rows.append([name, *(f"{figure:.3f}" for figure in figures), f"{stored:.2f}", f"{saves[0].bytes:,}"])
    return ResultTable(("save", "stall s", "min", "max", "ratio", "stored after s", "bytes"), rows)


def measure_saves(folder: str, repeats: int, config: RunConfig = CONFIG) -> list[MeasuredSave]:
    """Train and save before every step, alternately asynchronously and synchronously.

    Args:
        folder: Path or URI to write to; two checkpoints remain in it.
        repeats: Measured saves of each kind, after one warm-up save of each kind.
        config: Model and engine, for one rank; trains on its first source, which must have images.

    Returns:
        Every measured save.
    """
    with single_rank_engine(config) as engine:
        checkpoints = CheckpointList(RunFolder(folder), 2, None, lambda: None, lambda _: None)
        run = _Run(engine, config, RunFolder(folder), checkpoints)
        # The first save of each kind allocates memory that later ones reuse, so it does not count.
        saves = [run.save(1 + number, synchronous=number % 2 == 1) for number in range(2 + 2 * repeats)]
    return saves[2:]


class _Run:
    """Training of one rank that keeps its own checkpoint list, in place of the tracker's."""

    def __init__(
        self, engine: Any, config: RunConfig, folder: RunFolder, checkpoints: CheckpointList
    ) -> None:
        self._engine = engine
        self._source = config.sources[0]
        self._image = config.model.image or ImageInput()
        self._folder = folder
        self._checkpoints = checkpoints
        self._group = checkpoints.choose_starting_point().group
        self._writer = CheckpointWriter(engine, folder, writer="benchmark")

    def save(self, step: int, synchronous: bool) -> MeasuredSave:
        """Save and take a step; an asynchronous save stalls training until the weights are copied."""
        progress = TrainingProgress(
            step, step, 1, self._engine.zero_optimization_stage(), adam_step(self._engine)
        )
        started = time.perf_counter()
        self._writer.save(progress, partial(self._on_saved, synchronous))
        if synchronous:
            self._writer.wait()
        stall = time.perf_counter() - started
        self._forward_and_backward()
        computed = time.perf_counter()
        self._writer.wait_for_copy()
        # The copy overlaps with forward and backward; only what is left of it after them stalls training.
        stall += time.perf_counter() - computed
        self._engine.step()
        self._writer.wait()
        files = read_manifest(self._folder.checkpoint(step)).files
        return MeasuredSave(synchronous, stall, self._stored_at - started, sum(file.bytes for file in files))

    def _on_saved(self, synchronous: bool, progress: TrainingProgress, outcome: StoredFile | str) -> None:
        self._checkpoints.rank_saved(self._group, 0, synchronous, progress, outcome)
        self._stored_at = time.perf_counter()

    def _forward_and_backward(self) -> None:
        shape = (1, self._image.height, self._image.width, self._image.channels)
        device = self._engine.device
        images = {"image": torch.randint(0, 256, shape, dtype=torch.uint8, device=device)}
        present = {"image": torch.ones(1, dtype=torch.bool, device=device)}
        logits = self._engine(images, present, self._source.name)
        labels = torch.zeros(1, dtype=torch.long, device=device)
        self._engine.backward(functional.cross_entropy(logits, labels))
