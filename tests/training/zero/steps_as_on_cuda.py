"""Steps of real engines with what they have on CUDA alone: compiled layers, fused optimizer, autocast around them."""

from pathlib import Path
from typing import Any

import ranks
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class WaitingRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Dispatch mode that counts operations for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.waits = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += str(operation).rpartition(".")[0] in ("aten._local_scalar_dense", "aten.nonzero")
        return operation(*args, **(kwargs or {}))


def _yes(model: nn.Module) -> bool:  # noqa: ARG001  # in place of a function with this argument
    return True


def logits_within_cuda_autocast(world_size: int, _: Path, stage: int) -> list[bool]:
    """Return whether an engine's logits are bf16: by itself, and as if autocast for CUDA were on around it."""
    engine = ranks.make_engine(world_size, stage, None, precision="bf16")
    image = torch.zeros(4, 6, 6, 1, dtype=torch.uint8)
    alone = engine({"image": image}, {}, "pictures")
    torch.set_autocast_enabled("cuda", True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = engine({"image": image}, {}, "pictures")
    torch.set_autocast_enabled("cuda", False)
    return [alone.dtype == torch.bfloat16, within.dtype == torch.bfloat16]


def train_fused(world_size: int, folder: Path, stage: int) -> list[float]:
    """Train with the fused optimizer, from a checkpoint of `ranks.train_and_save`, and without a checkpoint."""
    from perceiver_dist.training.zero import optimizer

    own = optimizer._has_fused_kernels
    optimizer._has_fused_kernels = _yes
    fresh = ranks.take_steps(ranks.make_engine(world_size, stage, None), world_size, 0, ranks.SAVED_AT)
    resumed = ranks.resume(world_size, folder, (stage, world_size), stage)
    optimizer._has_fused_kernels = own
    return fresh + resumed


def waits_of_a_step(world_size: int, _: Path, stage: int) -> list[int]:
    """Return the number of times that a second step waits for the device: in its micro-steps, and in all."""
    from perceiver_dist.training.zero import optimizer

    optimizer._has_fused_kernels = _yes
    engine = ranks.make_engine(world_size, stage, None)
    ranks.take_steps(engine, world_size, 0, 1)
    arrays = {"image": torch.zeros(4, 6, 6, 1, dtype=torch.uint8)}
    waits = []
    with WaitingRecorder() as recorder:
        for _lane in range(ranks.LANES):
            engine.backward(engine(arrays, {}, "pictures").logsumexp(1).sum())
            waits.append(recorder.waits)
            engine.step()
    return [waits[-1], recorder.waits]


def train_compiled(world_size: int, folder: Path, stage: int, precision: str) -> list[float]:
    """Train with compiled layers and save at `SAVED_AT`."""
    engine = ranks.make_engine(world_size, stage, None, compile=True, precision=precision)
    losses = ranks.take_steps(engine, world_size, 0, ranks.SAVED_AT)
    ranks.save(engine, ranks.run_of(folder / precision, stage, world_size), ranks.SAVED_AT)
    return losses + ranks.take_steps(engine, world_size, ranks.SAVED_AT, ranks.STEPS)


def resume_compiled(world_size: int, folder: Path, stage: int, precision: str) -> list[float]:
    """Resume the run of `train_compiled`, in a process that has compiled nothing yet."""
    checkpoint = ranks.checkpoint_of(folder / precision, stage, world_size)
    engine = ranks.make_engine(world_size, stage, checkpoint, compile=True, precision=precision)
    return ranks.take_steps(engine, world_size, ranks.SAVED_AT, ranks.STEPS)


def train_plain(world_size: int, _: Path, stage: int, precision: str) -> list[float]:
    """Train without compilation."""
    engine = ranks.make_engine(world_size, stage, None, precision=precision)
    return ranks.take_steps(engine, world_size, 0, ranks.STEPS)
