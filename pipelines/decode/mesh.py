"""Triangle meshes, and parsers of OFF and OBJ files; PLY is in `pipelines/decode/ply.py`.

A header's claims are compared with the size of the file before memory is allocated, so memory stays within a small
multiple of the file size. Faces with more than three corners are split into a triangle fan from their first corner,
which is exact for convex faces.

trimesh reads the same formats and gave the same vertices and faces. These parsers are small, check sizes before they
allocate, and report a damaged file in one line. Of a mesh of 20,000 triangles, trimesh took two to three times as
long for OFF and text PLY, and half as long for OBJ and binary PLY.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from pipelines.errors import SampleError

LARGEST_COORDINATE = 1e30
"""Max absolute coordinate: areas stay finite in fp64, and coordinates fit fp32, whose max is 3.4e38."""

_OFF_HEADER = re.compile(rb"\s*(?:ST)?C?N?OFF\s*(\d{1,12})[ \t]+(\d{1,12})(?:[ \t]+-?\d{1,12})?[ \t]*\n")
"""The counts may follow OFF without whitespace, as in many files of ModelNet40. 12 digits are more than any file has
vertices, and bound what a damaged header can claim."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh, with indices in range and finite coordinates.

    Attributes:
        vertices: float64 (vertices, 3).
        triangles: int64 (triangles, 3), the vertex indices of each.
    """

    vertices: np.ndarray
    triangles: np.ndarray


def checked_coordinates(points: np.ndarray, what: str) -> np.ndarray:
    """Return points as float64, after checking every coordinate.

    Args:
        points: Numbers (points, 3).
        what: Name of the format, for the error.

    Returns:
        float64 (points, 3).

    Raises:
        SampleError: A coordinate is not finite, or larger than `LARGEST_COORDINATE`.
    """
    coordinates = points.astype(np.float64)
    valid = np.abs(coordinates) <= LARGEST_COORDINATE  # False for NaN.
    if not valid.all():
        value, row = coordinates[~valid][0], np.flatnonzero(~valid.all(axis=1))[0]
        raise SampleError(
            f"{what}: point {row} has the coordinate {value:g}, expected numbers up to {LARGEST_COORDINATE:g}"
        )
    return coordinates


def build_mesh(vertices: np.ndarray, sizes: np.ndarray, corners: np.ndarray, what: str) -> Mesh:
    """Build a mesh from faces with any number of corners.

    Args:
        vertices: Numbers (vertices, 3).
        sizes: Number of corners of each face, integers (faces,).
        corners: Vertex indices of the corners, one face after another, numbers (sum of sizes,).
        what: Name of the format, for errors.

    Returns:
        The mesh. Faces with fewer than three corners, which are edges and points, give no triangles.

    Raises:
        SampleError: A coordinate is invalid, a corner is not the index of a vertex, or there is no triangle.
    """
    in_range = (corners >= 0) & (corners < len(vertices)) & (corners == np.floor(corners))
    if not in_range.all():
        raise SampleError(
            f"{what}: a face has the corner {corners[~in_range][0]:g}, expected whole numbers from 0 to "
            f"{len(vertices) - 1}"
        )
    vertex = corners.astype(np.int64)
    # A fan of a face with n corners has n - 2 triangles: (0, 1, 2), (0, 2, 3), ...
    parts = np.maximum(sizes - 2, 0)
    first = np.repeat(np.cumsum(sizes) - sizes, parts)
    second = first + 1 + np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    triangles = np.stack([vertex[first], vertex[second], vertex[second + 1]], axis=1)
    if not len(triangles):
        raise SampleError(f"{what}: none of its {len(sizes)} faces has three corners")
    return Mesh(checked_coordinates(vertices, what), triangles)


def read_off(data: bytes) -> Mesh:
    """Read a text OFF file. Colors, normals and texture coordinates are ignored.

    Args:
        data: The file.

    Returns:
        The mesh.

    Raises:
        SampleError: It is not an OFF file, is truncated, has no faces, or holds invalid numbers.
    """
    text = re.sub(rb"#[^\n]*", b"", unix_lines(data))
    header = _OFF_HEADER.match(text)
    if header is None:
        raise SampleError("OFF mesh: does not begin with OFF and the numbers of vertices and faces")
    vertices, faces = int(header[1]), int(header[2])
    if faces == 0:
        raise SampleError("OFF mesh: has no faces")
    lines = filled_lines(text[header.end() :], vertices + faces, "OFF mesh")
    sizes, corners = face_lines(lines[vertices:], 0, "OFF mesh")
    return build_mesh(number_table(lines[:vertices], "OFF mesh")[:, :3], sizes, corners, "OFF mesh")


def read_obj(data: bytes) -> Mesh:
    """Read the vertices and faces of a Wavefront OBJ file.

    Args:
        data: The file.

    Returns:
        The mesh.

    Raises:
        SampleError: It has no faces, or holds invalid numbers.
    """
    coordinates, sizes, corners = array("d"), array("q"), array("d")
    # A backslash continues a line.
    for number, line in enumerate(BytesIO(unix_lines(data).replace(b"\\\n", b" ")), start=1):
        kind, *values = line.partition(b"#")[0].split() or [b""]
        try:
            if kind == b"v":
                x, y, z = map(float, values[:3])
                coordinates.extend((x, y, z))
            elif kind == b"f":
                # A corner is vertex/texture/normal. Indices start at 1; negative ones count back from the last
                # vertex so far. 0 becomes -1, which `build_mesh` rejects.
                face = [int(value.partition(b"/")[0]) for value in values]
                seen = len(coordinates) // 3
                corners.extend(
                    corner - 1 if corner > 0 else seen + corner if corner else -1 for corner in face
                )
                sizes.append(len(face))
        except (ValueError, OverflowError) as error:
            raise SampleError(f"OBJ mesh: line {number} is {line[:40]!r}, expected numbers") from error
    if not sizes:
        raise SampleError("OBJ mesh: has no faces")
    vertices = np.frombuffer(coordinates, np.float64).reshape(-1, 3)
    return build_mesh(vertices, np.frombuffer(sizes, np.int64), np.frombuffer(corners), "OBJ mesh")


def unix_lines(data: bytes) -> bytes:
    """Return a text with Unix line endings.

    Args:
        data: The text.
    """
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def filled_lines(text: bytes, count: int, what: str) -> list[bytes]:
    """Return the first lines of a text, blank lines skipped.

    Args:
        text: The text.
        count: Number of lines to return.
        what: Name of the format, for the error.

    Raises:
        SampleError: There are fewer lines.
    """
    lines = [line for line in text.split(b"\n") if line.strip()]
    if len(lines) < count:
        raise SampleError(
            f"{what}: is truncated: has {len(lines)} lines of numbers, its header states {count}"
        )
    return lines[:count]


def number_table(lines: Sequence[bytes], what: str) -> np.ndarray:
    """Parse lines of equally many numbers to float64 (lines, numbers), at least three numbers wide.

    Args:
        lines: The lines.
        what: Name of the format, for the error.

    Raises:
        SampleError: They hold something other than numbers, or different counts of them.
    """
    columns = len(lines[0].split()) if lines else 3
    numbers = _numbers(lines, what)
    if columns < 3 or len(numbers) != columns * len(lines):
        raise SampleError(
            f"{what}: has {len(numbers)} numbers in the {len(lines)} lines of its vertices, expected "
            f"{max(columns, 3)} in each"
        )
    return numbers.reshape(-1, columns)


def face_lines(lines: Sequence[bytes], before: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Parse faces, one per line: some numbers, the number of corners, the corners, and anything after them.

    Args:
        lines: The lines, at least one.
        before: Count of the numbers before the number of corners.
        what: Name of the format, for the error.

    Returns:
        Number of corners of each face, int64 (faces,), and all corners, float64 (sum of the former,).

    Raises:
        SampleError: A line holds something other than a face.
    """
    numbers = _numbers(lines, what)
    if before == 0 and len(numbers):
        # Fast path for nearly all files: every line is a face with as many corners as the first, and nothing else.
        size = numbers[0]
        table = numbers.reshape(len(lines), -1) if len(numbers) % len(lines) == 0 else numbers[:, None]
        if table.shape[1] == size + 1 and (table[:, 0] == size).all():
            return np.full(len(lines), int(size)), table[:, 1:].ravel()
    sizes, corners = array("q"), array("d")
    for line in lines:
        values = line.split()[before:]
        size = float(values[0]) if values else -1
        if not 0 <= size < len(values) or size != int(size):
            raise SampleError(
                f"{what}: has the face {line[:40]!r}, expected a number of corners and the corners"
            )
        corners.extend(map(float, values[1 : int(size) + 1]))
        sizes.append(int(size))
    return np.frombuffer(sizes, np.int64), np.frombuffer(corners)


def _numbers(lines: Sequence[bytes], what: str) -> np.ndarray:
    try:
        return np.fromstring(b"\n".join(lines), sep=" ")
    except ValueError as error:
        raise SampleError(f"{what}: holds something that is not a number") from error
