"""Order of blocks: every unit reaches exactly the rank that the accumulation plan says, once and in order."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.errors import InternalError
from perceiver_dist.training.zero.accumulation import units_of_rank
from pipelines.units.block_order import BlockOrder, SingleUnits, UnitBlock, group_of
from pipelines.units.schedule import Schedule

Taken = list[tuple[str, int]]
"""Source and number of units, in the order in which they are taken."""


@st.composite
def orders(draw: st.DrawFn) -> BlockOrder:
    weights = draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.5]), min_size=1, max_size=3))
    names = [f"s{number}" for number in range(len(weights))]
    first = draw(st.integers(0, 300))
    return BlockOrder(
        Schedule(dict(zip(names, weights, strict=True))),
        lanes=draw(st.integers(1, 8)),
        first_step=first,
        stop_step=first + draw(st.integers(1, 80)),
        largest={name: draw(st.sampled_from([1, 2, 4, 8, 16])) for name in names},
        spare=draw(st.integers(0, 3)),
    )


@st.composite
def runs(draw: st.DrawFn) -> tuple[BlockOrder, int]:
    order = draw(orders())
    return order, draw(st.integers(1, order.lanes))


def units_at(order: BlockOrder, step: int) -> range:
    first = order.schedule.steps_before(order.schedule.source_at(step), step) * order.lanes
    return range(first, first + order.lanes)


def planned(order: BlockOrder, rank: int, ranks: int) -> Taken:
    """Return what the training loop of a rank asks for."""
    return [
        (order.schedule.source_at(step), unit)
        for step in range(order.first_step, order.stop_step)
        for unit in units_of_rank(rank, ranks, units_at(order, step), order.first_block(step))
    ]


def taken(due: Taken, blocks: Iterator[UnitBlock]) -> Taken:
    """Take units as `UnitStream` does: the next block is opened when no open one has the unit."""
    found: Taken = []
    left: set[tuple[str, int]] = set()
    for source, unit in due:
        if (source, unit) not in left:
            block = next(blocks)
            assert (block.source, block.units[0]) == (source, unit)
            left |= {(block.source, number) for number in block.units}
        left.remove((source, unit))
        found.append((source, unit))
    assert not left, "a block has units that no step asks for"
    return found


@given(runs())
def test_every_rank_gets_the_units_of_the_accumulation_plan_in_order(run: tuple[BlockOrder, int]) -> None:
    order, ranks = run
    blocks = list(order)
    everything: Taken = []
    for rank in range(ranks):
        due = planned(order, rank, ranks)
        rest = iter(blocks[rank::ranks])
        assert taken(due, rest) == due
        assert all(block.source == "" for block in rest)
        everything += due
    expected = [
        (order.schedule.source_at(step), unit)
        for step in range(order.first_step, order.stop_step)
        for unit in units_at(order, step)
    ]
    assert sorted(everything) == sorted(expected)


@given(runs(), st.integers(0, 80), st.integers(1, 8))
def test_a_resumed_run_continues_with_the_same_units_for_any_number_of_ranks(
    run: tuple[BlockOrder, int], later: int, other: int
) -> None:
    """Also in the middle of a group, and with another world size."""
    order, ranks = run
    step = min(order.first_step + later, order.stop_step - 1)
    resumed = BlockOrder(order.schedule, order.lanes, step, order.stop_step, order.largest)
    for at in range(step, order.stop_step):
        whole, part = (
            sorted(
                unit
                for rank in range(count)
                for unit in units_of_rank(rank, count, units_at(of, at), of.first_block(at))
            )
            for of, count in ((order, ranks), (resumed, min(other, order.lanes)))
        )
        assert whole == part


@given(orders())
def test_the_first_step_waits_for_its_own_units_only(order: BlockOrder) -> None:
    first = list(order)[: order.lanes]
    assert [list(block.units) for block in first] == [[unit] for unit in units_at(order, order.first_step)]
    assert order.first_block(order.first_step) == 0


@given(st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 500))
def test_groups_double_up_to_the_largest_and_leave_no_gap(largest: int, position: int) -> None:
    group, following = group_of(position, largest), group_of(position + 1, largest)
    assert group.start <= position < group.start + group.steps
    assert group.steps == min(2**group.number, largest)
    assert following in (group, group_of(group.start + group.steps, largest))
    assert (following.number == group.number) == (position + 1 < group.start + group.steps)


def test_blocks_of_two_sources_come_in_the_order_in_which_the_schedule_needs_them() -> None:
    order = BlockOrder(Schedule({"a": 2.0, "b": 1.0}), 2, 0, 9, {"a": 2, "b": 4}, spare=1)
    assert [(block.source, list(block.units)) for block in order] == [
        ("a", [0]),
        ("a", [1]),
        ("b", [0]),
        ("b", [1]),
        ("a", [2, 4]),
        ("a", [3, 5]),
        ("b", [2, 4]),
        ("b", [3, 5]),
        ("a", [6, 8]),
        ("a", [7, 9]),
        ("a", [10]),
        ("a", [11]),
        ("", []),
    ]


def test_a_group_that_cannot_double_is_a_bug() -> None:
    with pytest.raises(InternalError, match="source 'a': groups of 3 steps; must be a power of two"):
        BlockOrder(Schedule({"a": 1.0}), 1, 0, 1, {"a": 3})


def test_single_units_are_blocks_of_one() -> None:
    assert list(SingleUnits("a", 3, 5)) == [UnitBlock("a", range(3, 4)), UnitBlock("a", range(4, 5))]
