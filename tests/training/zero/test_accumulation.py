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
def sharings(draw: st.DrawFn) -> tuple[int, int, int, int]:
    lanes = draw(st.integers(1, 64))
    return (
        lanes,
        draw(st.integers(1, lanes)),
        draw(st.integers(0, 1000)) * lanes,
        draw(st.integers(0, 50)),
    )


@given(sharings())
def test_every_unit_belongs_to_one_rank_and_no_rank_is_idle(sharing: tuple[int, int, int, int]) -> None:
    lanes, ranks, first_dealt, steps_later = sharing
    start = first_dealt + steps_later * lanes
    shares = [units_of_rank(rank, ranks, range(start, start + lanes), first_dealt) for rank in range(ranks)]
    assert sorted(unit for share in shares for unit in share) == list(range(start, start + lanes))
    assert all(1 <= len(share) <= accumulation_steps(lanes, ranks) for share in shares)


@given(sharings())
def test_a_rank_takes_its_units_in_order(sharing: tuple[int, int, int, int]) -> None:
    lanes, ranks, first_dealt, _ = sharing
    steps = [range(first_dealt + step * lanes, first_dealt + (step + 1) * lanes) for step in range(5)]
    for rank in range(ranks):
        taken = [unit for units in steps for unit in units_of_rank(rank, ranks, units, first_dealt)]
        assert taken == list(range(first_dealt + rank, first_dealt + 5 * lanes, ranks))


@given(st.integers(1, 64), st.integers(1, 64))
def test_losses_are_not_scaled_if_the_ranks_divide_the_lanes(ranks: int, units: int) -> None:
    assert loss_factor(ranks * units, ranks) == 1
    assert accumulation_steps(ranks * units, ranks) == units


def test_three_ranks_share_four_lanes() -> None:
    assert [units_of_rank(rank, 3, range(4, 8), 0) for rank in range(3)] == [[6], [4, 7], [5]]
    assert (accumulation_steps(4, 3), loss_factor(4, 3)) == (2, 1.5)


@given(sharings())
def test_ranks_take_the_same_number_of_micro_steps_whose_weights_make_the_mean(
    sharing: tuple[int, int, int, int],
) -> None:
    lanes, ranks, first_dealt, _ = sharing
    units = range(first_dealt, first_dealt + lanes)
    steps = [micro_steps_of_rank(rank, ranks, units, first_dealt) for rank in range(ranks)]
    assert {len(of_rank) for of_rank in steps} == {accumulation_steps(lanes, ranks)}
    assert all(step.is_padding == (step.weight == 0) for of_rank in steps for step in of_rank)
    total = sum(step.weight for of_rank in steps for step in of_rank)
    assert total / (ranks * accumulation_steps(lanes, ranks)) == pytest.approx(1)


def test_a_rank_without_a_unit_computes_its_last_one_again_with_weight_0() -> None:
    assert micro_steps_of_rank(0, 3, range(4, 8), 0) == [MicroStep(6, 1.5, False), MicroStep(6, 0.0, True)]
    assert micro_steps_of_rank(1, 3, range(4, 8), 0) == [MicroStep(4, 1.5, False), MicroStep(7, 1.5, False)]
