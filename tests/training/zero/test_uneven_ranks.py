"""World sizes that do not divide the lanes, and skipped steps, at every ZeRO stage."""

import pytest
import ranks
import uneven_ranks

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[float]]:
    """Losses and skipped steps by world size and name."""
    folder = tmp_path_factory.mktemp("uneven")
    found: dict[tuple[int, str], list[float]] = {}
    for world_size, stages in ((1, (0,)), (3, STAGES)):
        work = [
            (f"{kind}{stage}", uneven_ranks.train, stage, kind == "bad")
            for stage in stages
            for kind in ("good", "bad")
        ]
        found |= {
            (world_size, name): values for name, values in ranks.run_ranks(world_size, folder, *work).items()
        }
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_three_ranks_take_the_steps_of_one_with_four_lanes(
    losses: dict[tuple[int, str], list[float]], stage: int
) -> None:
    assert losses[3, f"good{stage}"] == pytest.approx(losses[1, "good0"], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_with_an_infinite_loss_is_skipped_by_all_ranks(
    losses: dict[tuple[int, str], list[float]], stage: int
) -> None:
    *good, none = losses[3, f"good{stage}"]
    *bad, skipped = losses[3, f"bad{stage}"]
    assert (none, skipped) == (0, 1)
    assert bad[:4] == good[:4]
    assert bad[4] == float("inf")
    # The weights are those before the skipped step, so later losses differ a little from the undisturbed run's.
    assert bad[5:] == pytest.approx(losses[1, "bad0"][5:-1], rel=1e-5)
    assert bad[5:] != good[5:]
