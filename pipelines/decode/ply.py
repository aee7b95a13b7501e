"""Parser of PLY files, meshes and point clouds, in text and in binary of either byte order.

`pipelines/decode/mesh.py` says why this is not trimesh.
"""

import re
from array import array
from dataclasses import dataclass

import numpy as np

from pipelines.decode.mesh import (
    Mesh,
    build_mesh,
    checked_coordinates,
    face_lines,
    filled_lines,
    number_table,
    unix_lines,
)
from pipelines.errors import SampleError

_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}

_LIST_OF_CORNERS = ("vertex_indices", "vertex_index")


@dataclass(frozen=True)
class _Property:
    """A scalar or list property of an element."""

    name: str
    type: np.dtype
    count_type: np.dtype | None = None
    """Type of the number that precedes a list; None for a scalar."""


@dataclass(frozen=True)
class _Element:
    """A table of the file: `count` rows of these properties."""

    name: str
    count: int
    properties: list[_Property]

    @property
    def names(self) -> list[str]:
        """Names of the properties, in order."""
        return [each.name for each in self.properties]

    @property
    def row_bytes(self) -> int:
        """Min bytes of a binary row: lists counted as if they were empty."""
        return sum((each.count_type or each.type).itemsize for each in self.properties)


Faces = tuple[np.ndarray, np.ndarray]
"""Number of corners of each face, and all corners, one face after another."""


def read_ply(data: bytes) -> Mesh:
    """Read the vertices of a PLY file, and its faces if it has any.

    Args:
        data: The file.

    Returns:
        The mesh; without triangles if the file is a cloud.

    Raises:
        SampleError: It is not a PLY file, is truncated, or holds invalid numbers.
    """
    order, elements, start = _read_header(data)
    if order:
        coordinates, faces = _read_binary(data, start, elements)
    else:
        coordinates, faces = _read_text(unix_lines(data[start:]), elements)
    if coordinates is None:
        raise SampleError("PLY mesh: has no element 'vertex'")
    if faces is None:
        return Mesh(checked_coordinates(coordinates, "PLY mesh"), np.empty((0, 3), np.int64))
    return build_mesh(coordinates, *faces, "PLY mesh")


def _read_header(data: bytes) -> tuple[str, list[_Element], int]:
    """Return the byte order ("" for text), the elements in file order, and the offset at which they begin.

    Raises:
        SampleError: It is not the header of a PLY file.
    """
    end = re.search(rb"(?:^|[\r\n])end_header[ \t]*(?:\r\n|\n|\r)", data)
    if not data.startswith(b"ply") or end is None:
        raise SampleError("PLY mesh: does not begin with ply and a header that ends in end_header")
    order: str | None = None
    elements: list[_Element] = []
    for line in unix_lines(data[: end.start()]).decode("latin-1").split("\n"):
        match line.split():
            case ["format", name, "1.0"] if name in _FORMATS:
                order = _FORMATS[name]
            # 18 digits fit an int64; whether the file is large enough is checked before anything is allocated.
            case ["element", name, count] if re.fullmatch(r"[0-9]{1,18}", count):
                elements.append(_Element(name, int(count), []))
            case ["property", type_name, name] if type_name in _TYPES and elements:
                elements[-1].properties.append(_Property(name, _type(order, type_name)))
            case ["property", "list", count_type, type_name, name] if {count_type, type_name} <= set(
                _TYPES
            ) and elements:
                types = _type(order, type_name), _type(order, count_type)
                elements[-1].properties.append(_Property(name, *types))
            case [] | ["ply" | "comment" | "obj_info", *_]:
                pass
            case _:
                raise SampleError(f"PLY mesh: has the header line {line[:60]!r}, which is not understood")
    if order is None:
        raise SampleError("PLY mesh: does not say its format")
    return order, elements, end.end()


def _type(order: str | None, name: str) -> np.dtype:
    return np.dtype((order or "<") + _TYPES[name])


def _read_text(text: bytes, elements: list[_Element]) -> tuple[np.ndarray | None, Faces | None]:
    # An element without properties has no lines in the file.
    filled = [element for element in elements if element.properties]
    lines = filled_lines(text, sum(element.count for element in filled), "PLY mesh")
    coordinates: np.ndarray | None = None
    faces: Faces | None = None
    for element in filled:
        rows, lines = lines[: element.count], lines[element.count :]
        if element.name == "vertex":
            coordinates = number_table(rows, "PLY mesh")
            if coordinates.shape[1] < len(element.properties):
                raise SampleError(f"PLY mesh: has {coordinates.shape[1]} numbers for each vertex")
            coordinates = coordinates[:, _places_of_axes(element)]
        elif element.name == "face" and rows:
            faces = face_lines(rows, _place_of_corners(element), "PLY mesh")
    return coordinates, faces


def _read_binary(data: bytes, start: int, elements: list[_Element]) -> tuple[np.ndarray | None, Faces | None]:
    coordinates: np.ndarray | None = None
    faces: Faces | None = None
    for element in elements:
        # Before any allocation: a header may claim more rows than the file can hold.
        if element.count * element.row_bytes > len(data) - start:
            raise SampleError(
                f"PLY mesh: is truncated: {len(data) - start} bytes are left for {element.count} rows of "
                f"'{element.name}'"
            )
        if element.name == "vertex":
            places = _places_of_axes(element)
            table = np.frombuffer(data, _row_type(element), element.count, start)
            columns = [table[f"value{place}"] for place in places]
            coordinates = np.stack([column.astype(np.float64) for column in columns], axis=1)
        if element.name == "face" and element.count:
            faces, start = _binary_faces(data, start, element)
        elif any(each.count_type for each in element.properties):
            *_, start = _walk_rows(data, start, element, -1)
        else:
            start += element.count * element.row_bytes
    return coordinates, faces


def _places_of_axes(element: _Element) -> list[int]:
    if not {"x", "y", "z"} <= set(element.names) or any(each.count_type for each in element.properties):
        raise SampleError("PLY mesh: its vertices must have x, y and z, and no lists")
    return [element.names.index(axis) for axis in "xyz"]


def _place_of_corners(element: _Element) -> int:
    lists = [place for place, each in enumerate(element.properties) if each.count_type]
    if not lists or element.names[lists[0]] not in _LIST_OF_CORNERS:
        raise SampleError("PLY mesh: its faces must have the list vertex_indices, before any other list")
    return lists[0]


def _row_type(element: _Element, list_length: int = 0) -> np.dtype:
    """Return the type of a binary row. Field names are generated, because a file may use one name twice."""
    fields: list[tuple[str, np.dtype] | tuple[str, np.dtype, tuple[int]]] = []
    for place, each in enumerate(element.properties):
        if each.count_type is None:
            fields.append((f"value{place}", each.type))
        else:
            fields += [(f"count{place}", each.count_type), (f"list{place}", each.type, (list_length,))]
    return np.dtype(fields)


def _binary_faces(data: bytes, start: int, element: _Element) -> tuple[Faces, int]:
    """Return the faces, and the offset at which they end."""
    place = _place_of_corners(element)
    if sum(each.count_type is not None for each in element.properties) == 1:
        # Fast path for nearly all files: all faces have as many corners as the first, so rows have equal length.
        before = sum(each.type.itemsize for each in element.properties[:place])
        count_type = element.properties[place].count_type
        size = int(np.frombuffer(data, count_type, 1, start + before)[0])
        # The size may be a damaged file's: bound it before it becomes part of a dtype.
        if 0 < size <= len(data):
            row = _row_type(element, size)
            if element.count * row.itemsize <= len(data) - start:
                table = np.frombuffer(data, row, element.count, start)
                if (table[f"count{place}"] == size).all():
                    corners = table[f"list{place}"].astype(np.float64).ravel()
                    sizes = np.full(element.count, size)
                    return (sizes, corners), start + element.count * row.itemsize
    sizes_read, corners_read, end = _walk_rows(data, start, element, place)
    return (sizes_read, corners_read), end


def _walk_rows(data: bytes, start: int, element: _Element, wanted: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return lengths and values of the list at property `wanted` of every row, and the offset at which the rows end.

    Raises:
        SampleError: The file ends before the rows do.
    """
    sizes, values = array("q"), array("d")
    for _ in range(element.count):
        for place, each in enumerate(element.properties):
            size = 1
            if each.count_type is not None and len(data) - start >= each.count_type.itemsize:
                size = int(np.frombuffer(data, each.count_type, 1, start)[0])
                start += each.count_type.itemsize
            if not 0 <= size * each.type.itemsize <= len(data) - start:
                raise SampleError(f"PLY mesh: is truncated in the rows of '{element.name}'")
            if place == wanted:
                sizes.append(size)
                values.extend(np.frombuffer(data, each.type, size, start).astype(np.float64))
            start += size * each.type.itemsize
    return np.frombuffer(sizes, np.int64), np.frombuffer(values), start
