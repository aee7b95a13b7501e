"""Tests of point cloud decoding: meshes and clouds give clouds of fixed size, damaged files a one-line error."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from mesh_files import SQUARE, Faces, Points, npy, obj, off, ply

from perceiver_dist.modalities import PointCloudInput
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode import decode_points
from pipelines.decode.mesh import Mesh, read_obj, read_off
from pipelines.decode.ply import read_ply
from pipelines.decode.points import read_cloud
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY

SPEC = PointCloudInput(points=64)
RAW = PointCloudInput(points=64, normalise=False)
EVALUATION = SampleRandomness(window=0.5, seed=3, augment=False)
TRAINING = SampleRandomness(window=0.5, seed=3, augment=True)
BINARY = ("binary_little_endian", "binary_big_endian")

coordinates = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def meshes(draw: st.DrawFn) -> tuple[Points, Faces]:
    """Draw vertices, and faces of three corners or of one to six."""
    vertices = draw(st.lists(st.tuples(coordinates, coordinates, coordinates), min_size=3, max_size=9))
    corner = st.integers(0, len(vertices) - 1)
    triangle = st.lists(corner, min_size=3, max_size=3)
    others = st.lists(st.lists(corner, min_size=1, max_size=6), max_size=4)
    return vertices, draw(st.permutations([draw(triangle), *draw(st.one_of(st.lists(triangle), others))]))


def fan(faces: Faces) -> list[list[int]]:
    """Return the triangles of faces, split as the parsers do."""
    return [[face[0], *face[i : i + 2]] for face in faces for i in range(1, len(face) - 1)]


def read_with(read: Callable[[bytes], Mesh], data: bytes) -> tuple[list[list[float]], list[list[int]]]:
    mesh = read(data)
    return mesh.vertices.tolist(), mesh.triangles.tolist()


@settings(max_examples=100, deadline=None)
@given(mesh=meshes(), crlf=st.booleans(), extra=st.booleans())
def test_meshes_round_trip_through_every_format(mesh: tuple[Points, Faces], crlf: bool, extra: bool) -> None:
    expected = ([list(map(float, vertex)) for vertex in mesh[0]], fan(mesh[1]))
    texts = {
        "off": (read_off, off(*mesh)),
        "glued": (read_off, off(*mesh, header="OFF")),
        "obj": (read_obj, obj(*mesh)),
        "ply": (read_ply, ply(*mesh, extra=extra)),
    }
    for name, (read, text) in texts.items():
        data = text.replace(b"\n", b"\r\n") if crlf else text
        assert read_with(read, data) == expected, name
    for form in BINARY:
        assert read_with(read_ply, ply(*mesh, form=form, extra=extra)) == expected, form


def test_face_colors_are_not_read_as_corners() -> None:
    text = off(*SQUARE).replace(b"3 0 1 2", b"3 0 1 2 9").replace(b"3 0 2 3", b"3 0 2 3 9")
    assert read_off(text).triangles.tolist() == SQUARE[1]


def test_colors_comments_and_blank_lines_in_off_are_skipped() -> None:
    text = b"# by hand\nCOFF\n\n3 2 # counts\n0 0 0 255 0\n1 0 0 0 0\n0 1 0 1 1\n\n3 0 1 2 9 9 9\n3 2 1 0\n"
    mesh = read_off(text)
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert mesh.triangles.tolist() == [[0, 1, 2], [2, 1, 0]]


def test_points_are_drawn_uniformly_by_area_within_their_triangles() -> None:
    # One triangle without area, then two right triangles of area 0.5 at z = 0 and 4.5 at z = 1.
    vertices: Points = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 0, 1), (0, 3, 1)]
    spec = PointCloudInput(points=40_000, normalise=False)
    points = decode_points(off(vertices, [[0, 0, 1], [0, 1, 2], [3, 4, 5]]), "off", spec, EVALUATION)
    large = points[points[:, 2] == 1]
    assert len(large) / len(points) == pytest.approx(0.9, abs=0.005)
    assert set(points[:, 2].tolist()) == {0.0, 1.0}
    assert (large[:, :2] >= 0).all()
    assert (large[:, :2].sum(axis=1) <= 3 + 1e-6).all()
    # Of a uniformly covered triangle, the mean is the centroid, and a ninth lies beyond two thirds of a side.
    assert large[:, :2].mean(axis=0) == pytest.approx([1, 1], abs=0.02)
    assert (large[:, 0] > 2).mean() == pytest.approx(1 / 9, abs=0.01)


@pytest.mark.parametrize("size", [1e-150, 1e25])
def test_areas_of_tiny_and_huge_meshes_neither_underflow_nor_overflow(size: float) -> None:
    vertices = [(size * x, size * y, size * z) for x, y, z in SQUARE[0]]
    points = decode_points(off(vertices, SQUARE[1]), "off", SPEC, EVALUATION)
    np.testing.assert_allclose(points, decode_points(off(*SQUARE), "off", SPEC, EVALUATION), atol=1e-6)


@pytest.mark.parametrize("field", ["off", "npy"])
def test_points_depend_only_on_the_seed(field: str) -> None:
    data = off(*SQUARE) if field == "off" else npy(np.random.default_rng(0).random((999, 3)))
    first, again = (decode_points(data, field, SPEC, TRAINING) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    other = decode_points(data, field, SPEC, SampleRandomness(window=0.5, seed=4, augment=True))
    assert not np.array_equal(np.sort(first, axis=0), np.sort(other, axis=0))


def test_the_points_of_a_seed_are_golden_values() -> None:
    points = decode_points(off(*SQUARE), "off", PointCloudInput(points=2, normalise=False), EVALUATION)
    assert points == pytest.approx(np.array([[0.6166, 0.4178, 0], [0.5273, 0.4331, 0]]), abs=1e-4)


@pytest.mark.parametrize("randomness", [EVALUATION, TRAINING])
def test_clouds_are_normalized_to_mean_0_and_the_unit_cube(randomness: SampleRandomness) -> None:
    points = decode_points(npy(np.random.default_rng(0).random((64, 3)) * 50 + 1000), "npy", SPEC, randomness)
    assert (points.dtype, points.shape) == (np.dtype(np.float32), (64, 3))
    assert points.mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-6)
    assert np.abs(points).max() == 1


def test_scale_jitter_in_training_is_at_most_one_percent() -> None:
    cloud = np.random.default_rng(0).normal(size=(64, 3))
    plain, jittered = (
        decode_points(npy(cloud), "npy", RAW, randomness) for randomness in (EVALUATION, TRAINING)
    )
    centre = plain.mean(axis=0)
    factors = (jittered - centre) / (plain - centre)
    assert factors == pytest.approx(factors[:, :1].repeat(3, axis=1), rel=1e-3)
    assert 0.99 <= factors.min() < 0.992
    assert 1.008 < factors.max() <= 1.01
    still = PointCloudInput(points=64, normalise=False, scale_jitter=0)
    assert np.array_equal(decode_points(npy(cloud), "npy", still, TRAINING), plain)


@pytest.mark.parametrize(("available", "copies"), [(100, {0, 1}), (64, {1}), (30, {2, 3}), (1, {64})])
def test_points_of_a_cloud_are_repeated_equally_often(available: int, copies: set[int]) -> None:
    cloud = np.arange(available * 3).reshape(-1, 3)
    points = decode_points(npy(cloud, "<i8"), "npy", RAW, EVALUATION)
    assert set(np.bincount(points[:, 0].astype(int) // 3, minlength=available).tolist()) == copies


@pytest.mark.parametrize("dtype", ["<f2", ">f8", "<i2", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_clouds_of_any_real_dtype_and_memory_layout_are_read(dtype: str, order: Literal["C", "F"]) -> None:
    numbers = np.arange(20).reshape(4, 5)
    assert np.array_equal(read_cloud(npy(numbers, dtype, order)), numbers[:, :3])


def test_a_ply_file_without_faces_is_a_cloud() -> None:
    for data in (ply(SQUARE[0], None), ply(SQUARE[0], [], form=BINARY[0])):
        points = decode_points(data, "ply", RAW, EVALUATION)
        assert {tuple(point) for point in points.tolist()} == set(SQUARE[0])


TRIANGLE = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
LIST = b"property list uchar int vertex_indices\n"
ABSURD = TRIANGLE.replace(b"ascii", b"binary_little_endian").replace(b"vertex 3", b"vertex 999999999999")


@pytest.mark.parametrize(
    ("field", "data", "error"),
    [
        ("off", b"", r"points are empty \(0 bytes\)"),
        ("off", b"NOT OFF\n3 1 0\n", "OFF mesh: does not begin with OFF"),
        ("off", b"OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "OFF mesh: has no faces"),
        ("off", b"OFF\n999999999 1 0\n0 0 0\n", "has 1 lines of numbers, its header states 1000000000"),
        ("off", off(*SQUARE)[:-8], "OFF mesh: is truncated: has 5 lines of numbers, its header states 6"),
        ("off", off(*SQUARE).replace(b"3 0 1 2", b"3 0 1 4"), "has the corner 4, .*from 0 to 3"),
        ("off", off(*SQUARE).replace(b"3 0 1 2", b"3 0 1 -1"), "has the corner -1"),
        ("off", off(*SQUARE).replace(b"3 0 1 2", b"3 0 1 .5"), r"has the corner 0\.5"),
        ("off", off(*SQUARE).replace(b"3 0 1 2", b"3 0 1"), "has the face b'3 0 1'"),
        ("off", off(*SQUARE).replace(b"1 0 0\n", b"1 nan 0\n"), "point 1 has the coordinate nan"),
        ("off", off(*SQUARE).replace(b"1 0 0\n", b"1 1e31 0\n"), r"coordinate 1e\+31, expected .* 1e\+30"),
        ("off", off(*SQUARE).replace(b"1 0 0\n", b"1 x 0\n"), "something that is not a number"),
        ("off", off(*SQUARE).replace(b"1 0 0\n", b"1 0\n"), "11 numbers in the 4 lines .*expected 3"),
        ("off", off(SQUARE[0], [[0, 1], [2]]), "none of its 2 faces has three corners"),
        ("off", off(SQUARE[0], [[0, 0, 1]]), "mesh has no surface: the area of its 1 triangles is 0"),
        ("obj", b"v 0 0 0\nv 1 0 0\n", "OBJ mesh: has no faces"),
        ("obj", b"v 0 0 0\nf 0 1 1\n", "has the corner -1"),
        ("obj", b"v 0 0 0\nf 1 1 -2\n", "has the corner -1"),
        ("obj", b"v 0 0\n", "line 1 is .*expected numbers"),
        ("obj", b"v 0 0 0\nf a b c\n", "line 2 is b'f a b c"),
        ("obj", b"f " + b"9" * 5000 + b" 1 1\n", "line 1 is"),
        ("obj", b"\x00\xff\xfe", "OBJ mesh: has no faces"),
        ("ply", b"plywood", "does not begin with ply and a header"),
        ("ply", b"ply\nelement vertex 3\nend_header\n", "does not say its format"),
        ("ply", TRIANGLE + b"property int128 w\nend_header\n", "header line 'property int128 w'"),
        ("ply", b"ply\nformat ascii 1.0\nend_header\n", "has no element 'vertex'"),
        ("ply", TRIANGLE + b"element face 1\nproperty int a\nend_header\n1\n1\n1\n1\n", "expected 3 in each"),
        ("ply", TRIANGLE.replace(b" z", b" w") + b"end_header\n" + b"0 0 0\n" * 3, "must have x, y and z"),
        ("ply", ABSURD + b"end_header\n" + bytes(36), "36 bytes are left for 999999999999 rows of 'vertex'"),
        ("ply", ply(*SQUARE, form=BINARY[0])[:-1], "is truncated in the rows of 'face'"),
        ("ply", ply([], [[0, 1, 2]], form=BINARY[1]), "has the corner 0, expected whole numbers"),
        ("npy", b"\x93NUMPY", "is not an npy file of numbers"),
        ("npy", b"PK\3\4 a zip", "is not an npy file of numbers"),
        ("npy", npy([[1, 2]]), r"is float32 \(1, 2\), expected real numbers \(points, 3\)"),
        ("npy", npy(np.zeros((0, 3))), r"is float32 \(0, 3\)"),
        ("npy", npy([[{}, {}, {}]], "O"), r"is object \(1, 3\)"),
        ("npy", npy([[1, 2, 3j]], "c8"), "is complex64"),
        ("npy", npy(np.ones((9, 3)))[:-1], "has 107 bytes of numbers, its header states 108"),
        ("npy", npy(np.ones((9, 3))).replace(b"(9, 3)", b"(-9,3)"), "expected real numbers"),
        ("npy", npy([[0, 0, np.inf], [1, 2, 3]]), "point 0 has the coordinate inf"),
        ("npy", npy([[1, 2, 3]]).replace(b"\0\0\x80\x3f", b"\1\0\x80\x7f"), "point 0 has the coordinate nan"),
        ("npy", npy(np.full((9, 3), 0.1)), "all 64 points are at the same place"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_invalid_files_are_reported_in_one_line(field: str, data: bytes, error: str) -> None:
    with pytest.raises(SampleError, match=error) as caught:
        decode_points(data, field, SPEC, EVALUATION)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_are_either_decoded_or_rejected(data: st.DataObject) -> None:
    files = {
        "off": [off(*SQUARE)],
        "obj": [obj(*SQUARE)],
        "npy": [npy(SQUARE[0])],
        "ply": [
            ply(*SQUARE, form=form, extra=extra) for form in ("ascii", *BINARY) for extra in (False, True)
        ],
    }
    field = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(data.draw(st.sampled_from(files[field])))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)))):
        content[place] = value
    cut = data.draw(st.integers(0, len(content)))
    try:
        points = decode_points(bytes(content[:cut] if cut % 2 else content), field, SPEC, TRAINING)
    except SampleError as error:
        # The catch-all of the decoder says "cannot be decoded": a kind of damage that no check foresees.
        event("rejected")
        unforeseen = "cannot be decoded" in str(error)
    else:
        event("decoded")
        is_cloud = (points.shape, points.dtype) == ((64, 3), np.dtype(np.float32))
        unforeseen = not is_cloud or not np.abs(points).max() <= 1
    assert not unforeseen


def test_the_field_names_of_points() -> None:
    assert {field for field, modality in FIELD_MODALITY.items() if modality == "points"} == {
        "off",
        "ply",
        "obj",
        "npy",
    }
