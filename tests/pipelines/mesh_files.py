"""Writers of small meshes and point clouds as OFF, OBJ, PLY and npy files."""

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Literal

import numpy as np

Points = Sequence[tuple[float, float, float]]
Faces = list[list[int]]

SQUARE: tuple[Points, Faces] = ([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], [[0, 1, 2], [0, 2, 3]])


def off(vertices: Points, faces: Faces, header: str = "OFF\n") -> bytes:
    """Return an OFF file. ModelNet40 has files whose header is "OFF" without a line break."""
    lines = [f"{header}{len(vertices)} {len(faces)} 0", *(" ".join(map(repr, vertex)) for vertex in vertices)]
    return "\n".join([*lines, *(" ".join(map(str, [len(face), *face])) for face in faces), ""]).encode()


def obj(vertices: Points, faces: Faces) -> bytes:
    """Return an OBJ file with texture and normal numbers. Every second face counts back from the last vertex."""
    lines = ["# a comment", "o thing", "vn 0 0 1", *(f"v {x!r} {y!r} {z!r}" for x, y, z in vertices)]
    for number, face in enumerate(faces):
        corners = [corner - len(vertices) if number % 2 else corner + 1 for corner in face]
        lines.append("f " + " ".join(f"{corner}/7/1" if number % 3 else f"{corner}" for corner in corners))
    return "\n".join([*lines, ""]).encode()


def ply(vertices: Points, faces: Faces | None, form: str = "ascii", extra: bool = False) -> bytes:
    """Return a PLY file of doubles; `extra` adds elements and properties around those that are read."""
    lines = ["ply", f"format {form} 1.0", "comment made for a test"]
    if extra:
        lines += ["element camera 1", "property list uchar float view", f"element vertex {len(vertices)}"]
        lines += ["property uchar red", *(f"property double {axis}" for axis in "zyx")]
    else:
        lines += [f"element vertex {len(vertices)}", *(f"property double {axis}" for axis in "xyz")]
    if faces is not None:
        lines += [f"element face {len(faces)}", *["property short flag"] * extra]
        lines += ["property list uchar int vertex_indices", *["property float weight"] * extra]
    header = "\n".join([*lines, "end_header", ""]).encode()
    rows: list[tuple[str, list[float]]] = [("Bfff", [3, 1.5, 2.5, 3.5])] if extra else []
    rows += [("Bddd", [9, z, y, x]) if extra else ("ddd", [x, y, z]) for x, y, z in vertices]
    for face in faces or []:
        row: list[float] = [7, len(face), *face, 0.5] if extra else [len(face), *face]
        rows.append((f"hB{len(face)}if" if extra else f"B{len(face)}i", row))
    if form == "ascii":
        return header + "\n".join([*(" ".join(map(repr, row)) for _, row in rows), ""]).encode()
    order = "<" if form == "binary_little_endian" else ">"
    return header + b"".join(struct.pack(order + kinds, *row) for kinds, row in rows)


def npy(points: object, dtype: str = "<f4", order: Literal["C", "F"] = "C") -> bytes:
    """Return an npy file."""
    target = BytesIO()
    np.save(target, np.array(points, dtype=dtype, order=order), allow_pickle=True)
    return target.getvalue()
