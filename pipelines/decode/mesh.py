"""Triangle meshes, and how OFF and OBJ files become one; PLY is in ply.py.

What a header claims is compared with the size of the file before memory is taken for it, so a file takes no more than
some times its own size. Faces with more than three corners are cut into a fan of triangles from their first corner,
which is exact for convex faces.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from pipelines.errors import SampleError

LARGEST_COORDINATE = 1e30
"""Absolute value up to which areas stay finite, and coordinates fit fp32."""

_OFF_HEADER = re.compile(rb"\s*(?:ST)?C?N?OFF\s*(\d{1,12})[ \t]+(\d{1,12})(?:[ \t]+-?\d{1,12})?[ \t]*\n")
"""The counts may follow OFF at once, without a space, as in many files of ModelNet40."""


@dataclass(frozen=True)
class Mesh:
    """A mesh whose indices are in range and whose coordinates are finite.

    Attributes:
        vertices: float64 (vertices, 3).
        triangles: int64 (triangles, 3), the vertices of each.
    """

    vertices: np.ndarray
    triangles: np.ndarray


def checked_coordinates(points: np.ndarray, what: str) -> np.ndarray:
    """Return points as float64, having looked at them.

    Args:
        points: Numbers (points, 3).
        what: What has them, for the error.

    Returns:
        float64 (points, 3).

    Raises:
        SampleError: A coordinate is not finite or too large to compute with.
    """
    coordinates = points.astype(np.float64)
    usable = np.abs(coordinates) <= LARGEST_COORDINATE  # NaN is not
    if not usable.all():
        value, row = coordinates[~usable][0], np.flatnonzero(~usable.all(axis=1))[0]
        raise SampleError(
            f"{what}: point {row} has the coordinate {value:g}, expected numbers up to {LARGEST_COORDINATE:g}"
        )
    return coordinates


def build_mesh(vertices: np.ndarray, sizes: np.ndarray, corners: np.ndarray, what: str) -> Mesh:
    """Put a mesh together from faces of any number of corners.

    Args:
        vertices: Numbers (vertices, 3).
        sizes: Corners of each face, whole numbers (faces,).
        corners: Vertices of the faces' corners, one face after another, numbers (sum of sizes,).
        what: What it is read from, for errors.

    Returns:
        The mesh. Faces of fewer than three corners, which are edges and points, have no triangles.

    Raises:
        SampleError: A coordinate cannot be used, a corner is not one of the vertices, or there is no triangle.
    """
    in_range = (corners >= 0) & (corners < len(vertices)) & (corners == np.floor(corners))
    if not in_range.all():
        raise SampleError(
            f"{what}: a face has the corner {corners[~in_range][0]:g}, expected whole numbers from 0 to "
            f"{len(vertices) - 1}"
        )
    vertex = corners.astype(np.int64)
    parts = np.maximum(sizes - 2, 0)
    first = np.repeat(np.cumsum(sizes) - sizes, parts)
    second = first + 1 + np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    triangles = np.stack([vertex[first], vertex[second], vertex[second + 1]], axis=1)
    if not len(triangles):
        raise SampleError(f"{what}: none of its {len(sizes)} faces has three corners")
    return Mesh(checked_coordinates(vertices, what), triangles)


def read_off(data: bytes) -> Mesh:
    """Read an OFF file, in text; colours, normals and texture coordinates are left out.

    Args:
        data: The file.

    Returns:
        The mesh.

    Raises:
        SampleError: It is no OFF file, truncated, has no faces, or holds numbers that cannot be used.
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
        SampleError: It has no faces, or holds numbers that cannot be used.
    """
    coordinates, sizes, corners = array("d"), array("q"), array("d")
    for number, line in enumerate(BytesIO(unix_lines(data).replace(b"\\\n", b" ")), start=1):
        kind, *values = line.partition(b"#")[0].split() or [b""]
        try:
            if kind == b"v":
                x, y, z = map(float, values[:3])
                coordinates.extend((x, y, z))
            elif kind == b"f":
                # A corner is vertex/texture/normal. It counts from 1, or back from the last vertex so far.
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
    """Return a text with its lines ended as on Unix.

    Args:
        data: The text.
    """
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def filled_lines(text: bytes, count: int, what: str) -> list[bytes]:
    """Return the first lines of a text that are not blank.

    Args:
        text: The text.
        count: Number of lines wanted.
        what: What it is, for the error.

    Raises:
        SampleError: There are fewer.
    """
    lines = [line for line in text.split(b"\n") if line.strip()]
    if len(lines) < count:
        raise SampleError(
            f"{what}: is truncated: has {len(lines)} lines of numbers, its header states {count}"
        )
    return lines[:count]


def number_table(lines: Sequence[bytes], what: str) -> np.ndarray:
    """Return lines of as many numbers each as float64 (lines, numbers), at least three numbers wide.

    Args:
        lines: The lines.
        what: What they are from, for the error.

    Raises:
        SampleError: They hold something else, or not as many numbers each.
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
    """Read faces, a line each: some numbers, the number of corners, the corners, and anything after them.

    Args:
        lines: The lines, at least one.
        before: How many numbers stand before that of the corners.
        what: What they are from, for the error.

    Returns:
        Corners of each face, int64 (faces,), and all corners, float64 (sum of the former,).

    Raises:
        SampleError: A line holds something else.
    """
    numbers = _numbers(lines, what)
    if before == 0 and len(numbers):
        # Nearly always all faces are triangles and nothing else; a line has then one number more than corners.
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
        raise SampleError(f"{what}: holds something that is no number") from error
