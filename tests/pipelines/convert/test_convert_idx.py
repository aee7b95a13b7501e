"""Tests of converting the idx files of the MNIST family: pixels and labels are preserved."""

import gzip
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from converted_shards import read_shards, written
from PIL import Image

from perceiver_dist.errors import UserError
from pipelines.convert import convert_fashion_mnist, convert_mnist
from pipelines.convert.idx import read_idx


def write_idx(path: Path, values: np.ndarray, packed: bool) -> None:
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(data) if packed else data)


def write_mnist(folder: Path, packed: bool = True, labels: int = 100) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte", images, packed)
        write_idx(folder / f"{split}-labels-idx1-ubyte", np.arange(labels, dtype=np.uint8) % 10, packed)
    return images


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("packed", [True, False])
def test_pixels_and_labels_are_preserved(tmp_path: Path, packed: bool) -> None:
    images = write_mnist(tmp_path, packed)
    source = written(convert_fashion_mnist(tmp_path, str(tmp_path / "out"), train_per_class=3))
    read = read_shards(source.train_shards)
    assert np.bincount([int(each["cls"]) for each in read]).tolist() == [3] * 10
    for each in read:
        pixels = np.asarray(Image.open(BytesIO(each["png"])))
        number = int(each["__key__"].partition("_")[2])
        np.testing.assert_array_equal(pixels, images[number])
        assert int(each["cls"]) == number % 10
    assert len(read_shards(source.eval_shards)) == 100


def test_each_data_set_has_its_class_names(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    assert convert_mnist(tmp_path, str(tmp_path / "a")).source.class_names[3] == "3"
    assert convert_fashion_mnist(tmp_path, str(tmp_path / "b")).source.class_names[3] == "Dress"


def test_requesting_too_many_images_per_class_is_rejected(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(
        UserError, match="11 images per class requested, must be from 1 to 10, the number that train has"
    ):
        convert_fashion_mnist(tmp_path, str(tmp_path / "out"), train_per_class=11)


def test_different_numbers_of_images_and_labels_are_rejected(tmp_path: Path) -> None:
    write_mnist(tmp_path, labels=99)
    with pytest.raises(
        UserError,
        match="has 100 images, but the label file beside it has 99 labels, the largest 9; expected one",
    ):
        convert_mnist(tmp_path, str(tmp_path / "out"))


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\x08\x03", struct.pack(">HBBI", 0, 8, 1, 9) + b"12345678", b"PK\3\4aaaa"]
)
def test_invalid_idx_files_are_rejected(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "images").write_bytes(data)
    with pytest.raises(UserError, match="is not an idx file"):
        read_idx(tmp_path / "images")
