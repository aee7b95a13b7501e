"""A small training with real DeepSpeed engines in separate processes, for tests of the ZeRO stages.

All ranks use the same fixed images: lane l of step s is a function of (s, l) only, so any world size that divides the
two lanes takes the same steps.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked_processes
import torch

from perceiver_dist.checkpoint.format import StoredCheckpoint, load_weights
from perceiver_dist.checkpoint.manifest import Manifest, TrainingProgress, write_manifest
from perceiver_dist.checkpoint.run_folder import RunFolder, checkpoint_name
from perceiver_dist.config.run_config import DeepSpeedConfig, RunConfig, TrainConfig
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import SourceConfig

LANES = 2
STEPS = 12
SAVED_AT = 8
"""After the warm-up of five steps, and after each source has been used at the full rate."""

CONFIG = RunConfig(
    model=ModelConfig(
        latents=8,
        width=24,
        latent_block_repeats=2,
        self_attends_per_block=1,
        readout="decoder",
        image=ImageInput(height=6, width=6, channels=1, bands=3),
        audio=AudioInput(samples=64, segment=16, position="learned", position_channels=5),
    ),
    sources=[
        SourceConfig("pictures", "none", ["image"], num_classes=3),
        SourceConfig("both", "none", ["image", "audio"], num_classes=5),
    ],
    train=TrainConfig(steps=STEPS, micro_batch=4, lanes=LANES, num_workers=1),
)


def run_ranks(world_size: int, folder: Path, *work: Any) -> dict[str, list[float]]:
    """Run functions on as many ranks and return rank 0's results by name, such as the mean losses."""
    rendezvous = Path(tempfile.mkdtemp(dir=folder)) / "rendezvous"
    forked_processes.call(_rank, (world_size, folder, rendezvous, work), world_size)
    return torch.load(folder / "results.pt", weights_only=True)


def _rank(rank: int, world_size: int, folder: Path, rendezvous: Path, work: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    results = {name: function(world_size, folder, *arguments) for name, function, *arguments in work}
    if rank == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


def train_and_save(world_size: int, folder: Path, stage: int, optimizer: str = "adamw") -> list[float]:
    """Train from the seed and save a checkpoint at `SAVED_AT`; return the loss of every step."""
    engine = make_engine(world_size, stage, None, optimizer)
    losses = take_steps(engine, world_size, 0, SAVED_AT)
    save(engine, run_of(folder, stage, world_size), SAVED_AT)
    return losses + take_steps(engine, world_size, SAVED_AT, STEPS)


def resume(
    world_size: int, folder: Path, saved: tuple[int, int], stage: int, optimizer: str = "adamw"
) -> list[float]:
    """Load the checkpoint of `train_and_save` at a stage and world size, write it again, and continue training.

    Returns:
        The loss of every later step.
    """
    engine = make_engine(world_size, stage, checkpoint_of(folder, *saved), optimizer)
    save(engine, run_of(run_of(folder, *saved), stage, world_size), SAVED_AT)
    return take_steps(engine, world_size, SAVED_AT, STEPS)


def train_frozen(
    world_size: int, folder: Path, stage: int, optimizer: str, frozen: list[str], steps: int
) -> list[float]:
    """Train with parts of the model frozen, and save a checkpoint after the last step."""
    engine = make_engine(world_size, stage, None, optimizer, frozen)
    losses = take_steps(engine, world_size, 0, steps)
    save(engine, folder / f"frozen-stage{stage}-{optimizer}", steps)
    return losses


def run_of(folder: Path, stage: int, world_size: int) -> Path:
    """The folder of a run of `train_and_save`."""
    return folder / f"stage{stage}-world{world_size}"


def checkpoint_of(folder: Path, stage: int, world_size: int) -> Path:
    """The checkpoint of a run of `train_and_save`."""
    return run_of(folder, stage, world_size) / checkpoint_name(SAVED_AT)


def save(engine: Any, folder: Path, steps: int) -> None:
    """Save on all ranks, as in a run; rank 0 takes the place of the tracker."""
    from perceiver_dist.training.zero.async_save import CheckpointWriter
    from perceiver_dist.training.zero.optimizer import adam_step

    stored: list[Any] = []
    writer = CheckpointWriter(engine, RunFolder(str(folder)), "writer")
    world_size = engine.dp_world_size
    progress = TrainingProgress(steps, 0, world_size, engine.zero_optimization_stage(), adam_step(engine))
    writer.save(progress, lambda _, outcome: stored.append(outcome))
    writer.wait()
    files: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(files, stored[0])
    if engine.global_rank == 0:
        write_manifest(str(folder / checkpoint_name(steps)), Manifest(progress, tuple(files)))
    torch.distributed.barrier()


def zero(stage: Any) -> DeepSpeedConfig:
    """Return the configuration of a ZeRO stage."""
    return DeepSpeedConfig(zero_stage=stage)


def make_engine(
    world_size: int,
    stage: int,
    checkpoint: Path | None,
    optimizer: str = "adamw",
    frozen: Sequence[str] = (),
    ema_decay: float = 0.0,
    **train: Any,
) -> Any:
    """A new engine, with the state of a checkpoint or of the seed, and options of `train`."""
    from perceiver_dist.model.perceiver import Perceiver
    from perceiver_dist.training.zero.engine import build_engine
    from perceiver_dist.training.zero.partitions import load_optimizer

    options: dict[str, Any] = {"optimizer": optimizer, "frozen": list(frozen), "ema_decay": ema_decay}
    config = replace(
        CONFIG,
        optim=replace(CONFIG.optim, **options),
        deepspeed=zero(stage),
        train=replace(CONFIG.train, **train),
    )
    torch.manual_seed(0 if checkpoint is None else 1)
    model = Perceiver(config.model, config.heads)
    if checkpoint is None:
        return build_engine(model, config, world_size)
    stored = StoredCheckpoint(str(checkpoint))
    load_weights(model, stored)
    engine = build_engine(model, config, world_size)
    load_optimizer(engine, stored)
    return engine


def take_steps(
    engine: Any, world_size: int, first: int, stop: int, after_step: Callable[[], None] = lambda: None
) -> list[float]:
    """Train from one step to another; return the losses."""
    from perceiver_dist.training.zero.engine import set_learning_rate
    from perceiver_dist.training.zero.learning_rate import learning_rate

    losses = []
    for step in range(first, stop):
        set_learning_rate(engine, learning_rate(step, STEPS, replace(CONFIG.optim, warmup_steps=5)))
        total = torch.zeros(())
        for lane in range(torch.distributed.get_rank(), LANES, world_size):
            loss = lane_loss(engine, step, lane)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / LANES
        after_step()
        torch.distributed.all_reduce(total)
        losses.append(total.item())
    return losses


def lane_loss(engine: Any, step: int, lane: int) -> torch.Tensor:
    """The loss of a lane in a step, by an engine or a model."""
    source = CONFIG.sources[step % 2]
    random = torch.Generator().manual_seed(1000 * step + lane)
    arrays = {
        "image": torch.randint(0, 256, (4, 6, 6, 1), generator=random, dtype=torch.uint8),
        "audio": torch.randint(-999, 999, (4, 64), generator=random, dtype=torch.int16),
    }
    arrays = {name: arrays[name] for name in source.modalities}
    labels = torch.randint(0, source.num_classes, (4,), generator=random)
    present = {name: torch.ones(4, dtype=torch.bool) for name in arrays}
    return torch.nn.functional.cross_entropy(engine(arrays, present, source.name).float(), labels)
