"""ZeRO partitions what is stored, not what is computed; a checkpoint knows nothing of the partition."""

from pathlib import Path

import pytest
import ranks

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, list[float]]:
    work = [(f"train {stage}", ranks.train_and_save, stage) for stage in STAGES]
    work += [(f"resume {stage}", ranks.resume, stage, stage) for stage in STAGES]
    work += [(f"resume {stage} as {3 - stage}", ranks.resume, stage, 3 - stage) for stage in STAGES]
    return ranks.run_ranks(2, folder, *work)


@pytest.fixture(scope="module")
def one_rank(folder: Path, two_ranks: dict[str, list[float]]) -> dict[str, list[float]]:
    assert two_ranks, "the checkpoints that one rank resumes are written by two"
    return ranks.run_ranks(1, folder, *[(f"resume {stage}", ranks.resume, stage, stage) for stage in STAGES])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_reaches_the_losses_of_stage_0(two_ranks: dict[str, list[float]], stage: int) -> None:
    assert two_ranks[f"train {stage}"] == pytest.approx(two_ranks["train 0"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_at_the_same_world_size_is_exact(two_ranks: dict[str, list[float]], stage: int) -> None:
    assert two_ranks[f"resume {stage}"] == two_ranks[f"train {stage}"][ranks.SAVED_AT :]


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_loads_at_another_stage(two_ranks: dict[str, list[float]], stage: int) -> None:
    expected = two_ranks[f"train {stage}"][ranks.SAVED_AT :]
    assert two_ranks[f"resume {stage} as {3 - stage}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_two_ranks_loads_on_one(
    two_ranks: dict[str, list[float]], one_rank: dict[str, list[float]], stage: int
) -> None:
    expected = two_ranks[f"train {stage}"][ranks.SAVED_AT :]
    assert one_rank[f"resume {stage}"] == pytest.approx(expected, rel=1e-5)
