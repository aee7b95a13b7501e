"""Small checkpoints, written as by any number of ranks, without an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from perceiver_dist.checkpoint.best_score import BestScore
from perceiver_dist.checkpoint.format import PARTS, Span, file_header, rank_file, write_rank_file
from perceiver_dist.checkpoint.manifest import LossSum, StoredFile, TrainingProgress
from perceiver_dist.checkpoint.retention import CheckpointList
from perceiver_dist.checkpoint.run_folder import checkpoint_name

Cut = tuple[str, str, Span]


def state(seed: int = 0) -> dict[tuple[str, str], Tensor]:
    """All parts of three parameters."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"latents": (5, 3), "head/weight": (4, 2, 2), "scale": ()}
    return {
        (part, name): torch.randn(shape, generator=random) for part in PARTS for name, shape in shapes.items()
    }


def cut(whole: Mapping[tuple[str, str], Tensor], world_size: int) -> list[list[Cut]]:
    """Cut every tensor into a span per rank; the last spans may be shorter or missing."""
    ranks: list[list[Cut]] = [[] for _ in range(world_size)]
    for (part, name), tensor in whole.items():
        size = -(-tensor.numel() // world_size)
        for rank, spans in enumerate(ranks):
            numel = min(size, tensor.numel() - rank * size)
            if numel > 0:
                spans.append((part, name, Span(rank * size, numel)))
    return ranks


def write_file(folder: Path, rank: int, world_size: int, spans: Sequence[Cut], step: int) -> StoredFile:
    """Write the file of one rank."""
    whole = state(step)
    values = [whole[part, name].flatten()[of.start : of.start + of.numel] for part, name, of in spans]
    shapes = {name: tuple(tensor.shape) for (_, name), tensor in whole.items()}
    uri = folder / checkpoint_name(step) / rank_file(rank, world_size, "writer")
    return write_rank_file(str(uri), file_header(spans, shapes), torch.cat([torch.empty(0), *values]))


def progress_of(step: int, world_size: int = 2) -> TrainingProgress:
    """The progress of a run at a step."""
    return TrainingProgress(step, 32 * step, world_size, 2, step - 1)


def save(
    checkpoints: CheckpointList,
    folder: Path,
    step: int,
    world_size: int = 2,
    losses: Sequence[Mapping[str, LossSum]] = (),
    best: BestScore | None = None,
) -> None:
    """Save a checkpoint as the ranks of the newest group do, with these unlogged losses of the ranks."""
    assert checkpoints.start is not None
    for rank, spans in enumerate(cut(state(step), world_size)):
        file = write_file(folder, rank, world_size, spans, step)
        progress = replace(
            progress_of(step, world_size), unlogged_losses=losses[rank] if losses else {}, best=best
        )
        checkpoints.rank_saved(checkpoints.start.group, rank, False, progress, file)
