"""Distribution of a step's units over any number of ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.training.zero.accumulation import (
    MicroStep,
    accumulation_steps,
    loss_factor,
    micro_steps_of_rank,
    units_of_rank,
)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[int, int, range, int]:
    """Draw lanes, ranks, the units of a step, and the number of its first block."""
    lanes = draw(st.integers(1, 64))
    first = draw(st.integers(0, 1000)) * lanes
    return lanes, draw(st.integers(1, lanes)), range(first, first + lanes), draw(st.integers(0, 1000)) * lanes


@given(sharings())
def test_every_unit_belongs_to_one_rank_and_no_rank_is_idle(sharing: tuple[int, int, range, int]) -> None:
    lanes, ranks, units, first_block = sharing
    shares = [units_of_rank(rank, ranks, units, first_block) for rank in range(ranks)]
    assert sorted(unit for share in shares for unit in share) == list(units)
    assert all(1 <= len(share) <= accumulation_steps(lanes, ranks) for share in shares)


@given(sharings())
def test_the_unit_of_a_lane_belongs_to_the_rank_that_its_block_is_dealt_to(
    sharing: tuple[int, int, range, int],
) -> None:
    lanes, ranks, units, first_block = sharing
    for lane in range(lanes):
        assert units[lane] in units_of_rank((first_block + lane) % ranks, ranks, units, first_block)


@given(st.integers(1, 64), st.integers(1, 64))
def test_losses_are_not_scaled_if_the_ranks_divide_the_lanes(ranks: int, units: int) -> None:
    assert loss_factor(ranks * units, ranks) == 1
    assert accumulation_steps(ranks * units, ranks) == units


def test_three_ranks_share_four_lanes() -> None:
    assert [units_of_rank(rank, 3, range(4, 8), 4) for rank in range(3)] == [[6], [4, 7], [5]]
    assert (accumulation_steps(4, 3), loss_factor(4, 3)) == (2, 1.5)


@given(sharings())
def test_ranks_take_the_same_number_of_micro_steps_whose_weights_make_the_mean(
    sharing: tuple[int, int, range, int],
) -> None:
    lanes, ranks, units, first_block = sharing
    steps = [micro_steps_of_rank(rank, ranks, units, first_block) for rank in range(ranks)]
    assert {len(of_rank) for of_rank in steps} == {accumulation_steps(lanes, ranks)}
    assert all(step.is_padding == (step.weight == 0) for of_rank in steps for step in of_rank)
    total = sum(step.weight for of_rank in steps for step in of_rank)
    assert total / (ranks * accumulation_steps(lanes, ranks)) == pytest.approx(1)


def test_a_rank_without_a_unit_computes_its_last_one_again_with_weight_0() -> None:
    assert micro_steps_of_rank(0, 3, range(4, 8), 4) == [MicroStep(6, 1.5, False), MicroStep(6, 0.0, True)]
    assert micro_steps_of_rank(1, 3, range(4, 8), 4) == [MicroStep(4, 1.5, False), MicroStep(7, 1.5, False)]
