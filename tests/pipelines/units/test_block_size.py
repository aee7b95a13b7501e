"""Sizes of blocks and read tasks."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.units.block_order import SingleUnits, UnitBlock
from pipelines.units.block_size import TASK_BYTES, tasks_of, units_per_block

MIB = 2**20


def test_blocks_hold_up_to_64_mib_and_64_units() -> None:
    assert units_per_block(5 * MIB, open_blocks=2) == 8
    assert units_per_block(4 * MIB, open_blocks=2) == 16
    assert units_per_block(1000, open_blocks=2) == 64


def test_a_unit_that_is_larger_than_a_block_may_be_is_a_block() -> None:
    assert units_per_block(100 * MIB, open_blocks=2) == 1


def test_blocks_are_smaller_where_a_rank_holds_many() -> None:
    assert units_per_block(4 * MIB, open_blocks=32) == 2


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=200),
    st.sampled_from([1000, 5 * MIB, 100 * MIB]),
    st.integers(1, 64),
)
def test_tasks_have_all_blocks_in_order_within_the_bounds(
    sizes: list[int], unit_bytes: int, max_units: int
) -> None:
    blocks = [
        UnitBlock("a" if size else "", range(number, number + size)) for number, size in enumerate(sizes)
    ]
    tasks = list(tasks_of(blocks, {"a": unit_bytes}, max_units))
    assert [block for task in tasks for block in task] == blocks
    assert all(tasks)
    for task in tasks:
        units = sum(len(block.units) for block in task)
        assert len(task) == 1 or (units <= max_units and units * unit_bytes <= TASK_BYTES)


def test_the_first_units_are_spread_over_tasks() -> None:
    tasks = list(tasks_of(SingleUnits("a", 0, 1000), {"a": 1000}, max_units=64))
    assert [len(task) for task in tasks[:8]] == [1] * 8
    assert max(map(len, tasks)) == 64
