"""Format of a block: what is packed comes back, without copies."""

import numpy as np

from pipelines.units.block_format import BlockBuffer, StoredBlock, block_of
from pipelines.units.unit_maker import Unit


def unit_of(number: int) -> Unit:
    return {
        "unit": np.array([number], np.int64),
        "keys": np.array([f"x.tar/{number}", "ä"], object),
        "quarantined": np.array([["x.tar", "1", "bad"]] * (number % 2), object).reshape(-1, 3),
        "valid": np.array([True, False]),
        "points": np.full((2, 3, 3), number / 7, np.float32),
        "audio": np.full((2, 5), -number, np.int16),
        "embeddings": np.empty(0),
    }


def test_units_come_back_as_they_were() -> None:
    numbers = range(5, 11, 2)
    stored = StoredBlock(block_of("speech", numbers, [unit_of(number) for number in numbers]))
    assert (stored.source, stored.units) == ("speech", [5, 7, 9])
    for row, number in enumerate(numbers):
        expected, found = unit_of(number), stored.unit(row)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype, name
            assert np.array_equal(found[name], array), name


def test_a_block_is_one_row_whose_schema_is_the_same_for_all_sources() -> None:
    one, other = block_of("a", [0], [unit_of(0)]), block_of("b", [0], [{"label": np.zeros(3)}])
    assert one.num_rows == other.num_rows == 1
    assert one.schema == other.schema


def test_a_spare_block_has_no_units() -> None:
    stored = StoredBlock(block_of("", [], []))
    assert (stored.source, stored.units) == ("", [])


def test_arrays_are_aligned_views_of_the_block() -> None:
    buffer = BlockBuffer({"flag": ((3,), np.dtype(bool)), "image": ((3, 7), np.dtype(np.float32))}, 2)
    for row in range(2):
        for name, array in buffer.arrays(row).items():
            array[...] = row + (name == "image")
    table = buffer.table("a", [0, 1], {})
    written, read = buffer.arrays(1), StoredBlock(table).unit(1)
    assert read["image"].tolist() == [[2.0] * 7] * 3
    for name in written:
        assert np.shares_memory(written[name], read[name]), name
    apart = buffer.arrays(0)["image"].ctypes.data - buffer.arrays(0)["flag"].ctypes.data
    assert apart == 64  # Not 6, the size of the flags.
