"""Point clouds of fixed size, sampled from the surface of a mesh or from a cloud of any size.

Of numpy's random numbers, only uniform ones of the PCG64 generator are used: their stream is the same in every
version of numpy, so a sample is too.
"""

from collections.abc import Callable
from io import BytesIO
from math import prod

import numpy as np

from perceiver_dist.modalities import PointCloudInput
from pipelines.augment.cloud_transform import transformed_cloud
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode.mesh import Mesh, checked_coordinates, read_obj, read_off
from pipelines.decode.ply import read_ply
from pipelines.errors import SampleError

MESH_READERS: dict[str, Callable[[bytes], Mesh]] = {"off": read_off, "ply": read_ply, "obj": read_obj}


def decode_points(data: bytes, field: str, spec: PointCloudInput, randomness: SampleRandomness) -> np.ndarray:
    """Decode a mesh or cloud to points, normalized to the cube from -1 to 1 as in the paper.

    From a mesh, points are drawn uniformly by area. From a larger cloud, a random subset is taken. Every point of a
    smaller cloud is taken equally often, and random ones once more.

    Args:
        data: A whole OFF, PLY, OBJ or npy file.
        field: Format: off, ply, obj or npy. It is given by the name, because OBJ has no signature.
        spec: Number of points, normalization and scale jitter.
        randomness: Which points are drawn, whether scale jitter is applied, and the augmentation.

    Returns:
        float32 (points, 3).

    Raises:
        SampleError: The bytes are empty, truncated, not of that format, or hold neither a surface nor a cloud.
    """
    random = np.random.Generator(np.random.PCG64(randomness.seed))
    mesh = read_points(data, field)
    if len(mesh.triangles):
        cloud = draw_from_surface(mesh, spec.points, random)
    else:
        cloud = draw_from_cloud(mesh.vertices, spec.points, random)
    placed, transform = _placed(cloud, spec, randomness, random), randomness.transform
    return transformed_cloud(placed, transform.augment, transform.seed).astype(np.float32)


def read_points(data: bytes, field: str) -> Mesh:
    """Read a mesh or cloud as it is in its file.

    Args:
        data: A whole OFF, PLY, OBJ or npy file.
        field: Format: off, ply, obj or npy.

    Returns:
        The mesh; a cloud has vertices only.

    Raises:
        SampleError: The bytes are empty, truncated, not of that format, or hold neither a surface nor a cloud.
    """
    if not data:
        raise SampleError("points are empty (0 bytes)")
    try:
        # Some NaNs in damaged files would make numpy warn on standard error; all values are checked afterwards.
        with np.errstate(invalid="ignore", over="ignore"):
            return Mesh(read_cloud(data), np.empty((0, 3))) if field == "npy" else MESH_READERS[field](data)
    except SampleError:
        raise
    except Exception as error:  # A file may be damaged in ways that the parsers do not foresee.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SampleError(f"points cannot be decoded: {reason}") from error


def read_cloud(data: bytes) -> np.ndarray:
    """Read a cloud from an npy file. Files with Python objects, which are pickles, are never loaded.

    Args:
        data: The file: real numbers (points, 3), or wider with more values per point.

    Returns:
        float64 (points, 3).

    Raises:
        SampleError: It is not such a file, or is truncated.
    """
    file = BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, columns_first, dtype = read_header(file)
    except Exception as error:
        # numpy evaluates the header as a Python literal, which raises nearly anything.
        raise SampleError("npy cloud: is not an npy file of numbers, or its header is damaged") from error
    if dtype.kind not in "fiu" or len(shape) != 2 or shape[0] < 1 or shape[1] < 3:
        raise SampleError(f"npy cloud: is {dtype} {shape}, expected real numbers (points, 3) or wider")
    stated, found = prod(shape) * dtype.itemsize, len(data) - file.tell()
    if stated > found:
        raise SampleError(
            f"npy cloud: is truncated: has {found} bytes of numbers, its header states {stated}"
        )
    numbers = np.frombuffer(data, dtype, prod(shape), file.tell())
    table = numbers.reshape(shape, order="F" if columns_first else "C")
    return checked_coordinates(table[:, :3], "npy cloud")


def draw_from_surface(mesh: Mesh, count: int, random: np.random.Generator) -> np.ndarray:
    """Draw points uniformly from the surface of a mesh.

    Args:
        mesh: The mesh, with at least one triangle.
        count: Number of points.
        random: Source of the random numbers.

    Returns:
        float64 (count, 3).

    Raises:
        SampleError: The area is 0.
    """
    corners = mesh.vertices[mesh.triangles]
    origin, sides = corners[:, 0], corners[:, 1:] - corners[:, :1]
    extent = np.abs(sides).max()
    # In units of the longest side, so that the areas of a tiny mesh do not underflow.
    first, second = (sides / extent if extent else sides).transpose(1, 0, 2)
    areas = np.linalg.norm(np.cross(first, second), axis=1)
    cumulative = np.cumsum(areas)
    if not cumulative[-1] > 0:
        raise SampleError(f"mesh has no surface: the area of its {len(areas)} triangles is 0")
    # "right" skips triangles without area, whose cumulative area equals that of the one before.
    chosen = np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right")
    chosen = np.minimum(chosen, np.searchsorted(cumulative, cumulative[-1], side="left"))
    weights = random.random((count, 2))
    # Reflect points of the parallelogram's other half into the triangle, which keeps them uniform.
    weights = np.where(weights.sum(axis=1, keepdims=True) > 1, 1 - weights, weights)
    return origin[chosen] + (weights[:, :, None] * sides[chosen]).sum(axis=1)


def draw_from_cloud(cloud: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Choose points of a cloud. None is repeated before all were taken.

    Args:
        cloud: float64 (points, 3).
        count: Number of points.
        random: Source of the random numbers.

    Returns:
        float64 (count, 3).

    Raises:
        SampleError: The cloud is empty.
    """
    if not len(cloud):
        raise SampleError("cloud has no points")
    order = np.argsort(random.random(len(cloud)), kind="stable")
    return cloud[np.resize(order, count)]


def _placed(
    cloud: np.ndarray, spec: PointCloudInput, randomness: SampleRandomness, random: np.random.Generator
) -> np.ndarray:
    """Apply the paper's steps: center at mean 0, jitter the scale of each point, center again, scale to the cube.

    Raises:
        SampleError: The points have no extent to scale.
    """
    if spec.normalise and (cloud == cloud[0]).all():
        raise SampleError(f"all {len(cloud)} points are at the same place, so they have no scale")
    centre = cloud.mean(axis=0)
    offsets = cloud - centre
    if randomness.augment and spec.scale_jitter:
        offsets = offsets * (1 + spec.scale_jitter * (2 * random.random((len(cloud), 1)) - 1))
    if not spec.normalise:
        return offsets + centre
    offsets = offsets - offsets.mean(axis=0)
    return offsets / np.abs(offsets).max()
