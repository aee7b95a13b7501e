"""Asynchronous saving with a real engine, for ranks in separate processes (`ranks.run_ranks`)."""

from pathlib import Path
from threading import Event
from typing import Any

import ranks
import torch

from perceiver_dist.checkpoint.manifest import TrainingProgress
from perceiver_dist.checkpoint.run_folder import RunFolder


def save_while_stepping(world_size: int, folder: Path, stage: int) -> dict[str, bool]:
    """Save, and delay the copy until the optimizer is about to step."""
    from perceiver_dist.training.zero.async_save import CheckpointWriter
    from perceiver_dist.training.zero.optimizer import base_optimizer
    from perceiver_dist.training.zero.partitions import owned_partitions

    def state() -> torch.Tensor:
        return torch.cat([partition.values for partition in owned_partitions(engine)])

    engine = ranks.make_engine(world_size, stage, None)
    stepping, copied, seen = Event(), Event(), []
    optimizer = base_optimizer(engine)
    optimizer.register_step_pre_hook(lambda *_: stepping.set())
    writer: Any = CheckpointWriter(engine, RunFolder(str(folder / f"stage{stage}")), "writer")
    optimizer.register_step_pre_hook(lambda *_: seen.append(copied.is_set()))
    copy = writer._copy_all

    def copy_late(*arguments: Any) -> None:
        stepping.wait()
        copy(*arguments)
        copied.set()

    writer._copy_all = copy_late
    before = state()
    writer.save(TrainingProgress(1, 0, world_size, stage, 0), lambda *_: None)
    ranks.take_steps(engine, world_size, 0, 1)
    writer.wait()
    return {
        "copied before the step": seen[0],
        "copy of the state before it": torch.equal(writer._copy, before),
        "state changed": not torch.equal(state(), before),
    }
