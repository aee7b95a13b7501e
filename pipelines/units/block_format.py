"""Format of a block: the arrays of several units in one buffer, as an Arrow table of one row.

A block of Ray Data is an Arrow table. Ray's own way to put arrays into one costs a copy for each array and a schema
that differs between sources. Here all arrays of a block lie in one buffer, each at a multiple of 64 bytes, and a header
(JSON) says where. Read tasks decode straight into that buffer; Arrow and Ray's object store take it as it is; and a
rank's arrays are views of the object store. From a decoded sample to the tensor, bytes are copied three times: into the
block, into the object store, and out of it.

    header   binary         source, numbers of the units, place of each array, and all texts
    arrays   large_binary   the arrays of the units, name by name: each has the units as first axis
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.units.unit_maker import ArraySpec, Unit

_ALIGNMENT = 64
"""Bytes: a cache line, and the alignment of the object store, so that arrays keep it when they are mapped."""


class BlockBuffer:
    """Memory for the arrays of the units of one block.

    Args:
        specs: Shape and type of each array of a unit.
        units: Number of units.
    """

    def __init__(self, specs: Mapping[str, ArraySpec], units: int) -> None:
        self._places: dict[str, tuple[str, list[int], int]] = {}
        end = 0
        for name, (shape, dtype) in specs.items():
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            self._places[name] = (dtype.str, [units, *shape], start)
            end = start + units * math.prod(shape) * dtype.itemsize
        self._buffer = np.empty(end, np.uint8)
        self._arrays = _views(self._buffer, self._places)

    def arrays(self, row: int) -> Unit:
        """Return the arrays of a unit, uninitialised memory at first.

        Args:
            row: Place of the unit in the block.
        """
        return {name: array[row] for name, array in self._arrays.items()}

    def table(self, source: str, numbers: Sequence[int], texts: Mapping[str, Sequence[Any]]) -> pa.Table:
        """Return the block. It shares the memory of this buffer, which must not be written to any more.

        Args:
            source: Name of the source.
            numbers: Number of each unit.
            texts: By name, nested lists of texts for each unit.
        """
        header = {"source": source, "units": list(numbers), "arrays": self._places, "texts": texts}
        arrays = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            1,
            [None, pa.py_buffer(np.array([0, self._buffer.size], np.int64)), pa.py_buffer(self._buffer)],
        )
        return pa.table({"header": pa.array([json.dumps(header).encode()], pa.binary()), "arrays": arrays})


def block_of(source: str, numbers: Sequence[int], units: Sequence[Unit]) -> pa.Table:
    """Return units as a block, by copying them.

    Args:
        source: Name of the source.
        numbers: Number of each unit.
        units: Their arrays, all with the same names, shapes and types. Arrays of objects hold texts.
    """
    first = units[0] if units else {}
    texts = [name for name, array in first.items() if array.dtype == object]
    buffer = BlockBuffer(
        {name: (array.shape, array.dtype) for name, array in first.items() if name not in texts}, len(units)
    )
    for row, unit in enumerate(units):
        for name, array in buffer.arrays(row).items():
            array[...] = unit[name]
    return buffer.table(source, numbers, {name: [unit[name].tolist() for unit in units] for name in texts})


class StoredBlock:
    """A block as it arrives.

    Args:
        table: As `BlockBuffer.table` returns it.

    Attributes:
        source: Name of the source; "" for a spare block.
        units: Numbers of the units.
    """

    def __init__(self, table: pa.Table) -> None:
        header = json.loads(table["header"][0].as_py())
        self.source: str = header["source"]
        self.units: list[int] = header["units"]
        self._texts: dict[str, list[Any]] = header["texts"]
        self._arrays = _views(_first_value(table["arrays"]), header["arrays"])

    def unit(self, row: int) -> Unit:
        """Return a unit. Its arrays are read-only views of the block's memory.

        Args:
            row: Place of the unit in the block.
        """
        unit = {name: array[row] for name, array in self._arrays.items()}
        return unit | {name: _text_array(texts[row]) for name, texts in self._texts.items()}


def _first_value(column: pa.ChunkedArray) -> np.ndarray:
    """Return the bytes of a large_binary column's first value, without a copy, which Arrow's own access makes."""
    array = column.chunk(0)
    _, offsets, values = array.buffers()
    start, end = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2]
    return np.frombuffer(values, np.uint8)[start:end] if end > start else np.empty(0, np.uint8)


def _text_array(texts: list[Any]) -> np.ndarray:
    # (n,) for a list of n texts; (n, 3) for one of n triples, also where n is 0.
    array = np.array(texts, object)
    return array if array.size else np.empty((0, 3), object)


def _views(buffer: np.ndarray, places: Mapping[str, Any]) -> Unit:
    arrays: Unit = {}
    for name, (kind, shape, start) in places.items():
        dtype = np.dtype(kind)
        end = start + math.prod(shape) * dtype.itemsize
        arrays[name] = buffer[start:end].view(dtype).reshape(shape)
    return arrays
