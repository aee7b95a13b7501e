"""ZeRO stages compute the same losses, and a checkpoint of any stage and world size loads at any other."""

from pathlib import Path
from typing import NamedTuple

import pytest
import ranks
import torch

from perceiver_dist.checkpoint.format import PARTS, StoredCheckpoint

STAGES = (0, 1, 2, 3)
WORLDS = (1, 2)


class Load(NamedTuple):
    """Stage and world size of the run that saved, and of the one that loads."""

    saved: tuple[int, int]
    stage: int
    world: int


LOADS = [
    Load((saved, saved_world), stage, world)
    for saved in STAGES
    for saved_world in WORLDS
    for stage, world in ((saved, saved_world), (saved, 3 - saved_world), (3 - saved, 3 - saved_world))
]


def name(load: Load) -> str:
    return "stage {}, {} ranks, at stage {}, {} ranks".format(*load.saved, load.stage, load.world)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def losses(folder: Path) -> dict[str, list[float]]:
    """Losses by name of the runs that save and of the runs that resume."""
    found: dict[str, list[float]] = {}
    for world in WORLDS:
        work = [(f"train {stage} {world}", ranks.train_and_save, stage) for stage in STAGES]
        found |= ranks.run_ranks(world, folder, *work)
    for world in WORLDS:
        resumed = [
            (name(load), ranks.resume, load.saved, load.stage) for load in LOADS if load.world == world
        ]
        found |= ranks.run_ranks(world, folder, *resumed)
    return found


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_reaches_the_losses_of_stage_0(losses: dict[str, list[float]], stage: int) -> None:
    assert losses[f"train {stage} 2"] == pytest.approx(losses["train 0 2"], rel=1e-4)


@pytest.mark.parametrize("load", LOADS, ids=name)
def test_a_resumed_run_has_the_losses_of_the_uninterrupted_one(
    losses: dict[str, list[float]], load: Load
) -> None:
    stage, world = load.saved
    expected = losses[f"train {stage} {world}"][ranks.SAVED_AT :]
    if load.saved == (load.stage, load.world):
        assert losses[name(load)] == expected
    else:
        assert losses[name(load)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("load", LOADS, ids=name)
def test_weights_and_moments_are_bit_identical_after_loading_at_any_stage(
    losses: dict[str, list[float]], folder: Path, load: Load
) -> None:
    assert name(load) in losses
    written = StoredCheckpoint(str(ranks.checkpoint_of(folder, *load.saved)))
    copy = ranks.checkpoint_of(ranks.run_of(folder, *load.saved), load.stage, load.world)
    again = StoredCheckpoint(str(copy))
    assert again.progress.optimizer_steps == written.progress.optimizer_steps == ranks.SAVED_AT
    for part in PARTS:
        expected, found = written.whole(part), again.whole(part)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        assert any(tensor.any() for tensor in expected.values())


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_write_about_half_of_a_checkpoint_each(
    losses: dict[str, list[float]], folder: Path, stage: int
) -> None:
    assert f"train {stage} 2" in losses
    sizes = [
        file.stat().st_size
        for file in ranks.checkpoint_of(folder, stage, 2).glob("rank-*-of-00002-*.safetensors")
    ]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)
