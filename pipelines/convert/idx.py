"""Converters of the idx files of MNIST and Fashion-MNIST."""

import gzip
import struct
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion, plan_conversion
from pipelines.shards.shard_writer import Sample

DIGITS = [str(digit) for digit in range(10)]
FASHION_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]

IDX_BYTES = 8
"""Type code of unsigned bytes in an idx header, the only one that the MNIST family uses."""


@dataclass(frozen=True)
class IdxItem:
    """One image of an idx file, written as a grayscale PNG.

    Attributes:
        images: Absolute path of the file with the images.
        split: train or t10k.
        index: Index of the image in the file.
        label: Number of its class.
    """

    images: str
    split: str
    index: int
    label: int

    def sample(self) -> Sample:
        """Read the image. Its file stays cached for the next one."""
        png = BytesIO()
        Image.fromarray(_read_idx_cached(self.images)[self.index]).save(png, "PNG", optimize=True)
        return {"__key__": f"{self.split}_{self.index:05d}", "png": png.getvalue(), "cls": self.label}


def convert_fashion_mnist(
    idx: Path,
    out: str,
    train_per_class: int | None = None,
    eval_per_class: int | None = None,
    samples_per_shard: int = 5000,
    seed: int = 0,
) -> Conversion:
    """Convert Fashion-MNIST to grayscale PNG images.

    Args:
        idx: Folder with the four files as published, train-images-idx3-ubyte and so on, compressed (.gz) or not.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        train_per_class: Images per class to take from the training split; None for all.
        eval_per_class: Images per class to take from the test split; None for all.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the choice of images and of their order.

    Raises:
        UserError: A file is missing or not an idx file of bytes, or a class has fewer images than requested.
    """
    return _convert(idx, out, FASHION_CLASSES, train_per_class, eval_per_class, samples_per_shard, seed)


def convert_mnist(
    idx: Path,
    out: str,
    train_per_class: int | None = None,
    eval_per_class: int | None = None,
    samples_per_shard: int = 5000,
    seed: int = 0,
) -> Conversion:
    """Convert MNIST, or another data set with the same files and ten classes, to grayscale PNG images.

    Args:
        idx: Folder with the four files as published, train-images-idx3-ubyte and so on, compressed (.gz) or not.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        train_per_class: Images per class to take from the training split; None for all.
        eval_per_class: Images per class to take from the test split; None for all.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the choice of images and of their order.

    Raises:
        UserError: A file is missing or not an idx file of bytes, or a class has fewer images than requested.
    """
    return _convert(idx, out, DIGITS, train_per_class, eval_per_class, samples_per_shard, seed)


def _convert(
    idx: Path,
    out: str,
    classes: list[str],
    train_per_class: int | None,
    eval_per_class: int | None,
    samples_per_shard: int,
    seed: int,
) -> Conversion:
    splits = {
        "train": _items(idx, "train", train_per_class, len(classes), seed),
        "eval": _items(idx, "t10k", eval_per_class, len(classes), seed),
    }
    return plan_conversion(splits, out, ["image"], list(classes), samples_per_shard)


def _items(idx: Path, split: str, per_class: int | None, classes: int, seed: int) -> list[IdxItem]:
    """Return the images of a split in shuffled order.

    Raises:
        UserError: A file is missing or invalid, or a class has fewer images than requested.
    """
    file = idx / f"{split}-images-idx3-ubyte"
    images, labels = read_idx(file), read_idx(idx / f"{split}-labels-idx1-ubyte")
    if len(images) != len(labels) or labels.max(initial=0) >= classes:
        raise UserError(
            f"{file}: has {len(images)} images, but the label file beside it has {len(labels)} labels, the largest "
            f"{labels.max(initial=0)}; expected one label per image, below {classes}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    if per_class is not None:
        fewest = int(np.bincount(labels).min())
        if not 0 < per_class <= fewest:
            raise UserError(
                f"{per_class} images per class requested, must be from 1 to {fewest}, the number that {split} has of "
                "its rarest class"
            )
        # The first ones of each class in shuffled order, whose order is kept.
        firsts = [np.flatnonzero(labels[order] == label)[:per_class] for label in np.unique(labels)]
        order = order[np.sort(np.concatenate(firsts))]
    return [IdxItem(str(file.absolute()), split, int(index), int(labels[index])) for index in order]


# Two files: the training and the test images. A task reads one, from the same file for a whole shard.
@lru_cache(maxsize=2)
def _read_idx_cached(file: str) -> np.ndarray:
    return read_idx(Path(file))


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file, the format of the MNIST family.

    Args:
        path: The file; if it is missing, the same name with .gz is read.

    Returns:
        uint8, of the shape stated in the header.

    Raises:
        UserError: Both files are missing, or the content is not an array of bytes of the stated shape.
    """
    packed = path.with_name(path.name + ".gz")
    if not path.is_file() and not packed.is_file():
        raise UserError(f"{path}: no such file, nor {packed.name} beside it")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
        zeros, kind, axes = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{axes}I", data, 4)
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, struct.error, ValueError) as error:
        raise UserError(f"{path}: is not an idx file, or is truncated: {error}") from error
    if zeros != 0 or kind != IDX_BYTES:
        raise UserError(
            f"{path}: is not an idx file of bytes: begins with {data[:4].hex()}, expected 000008.."
        )
    return values
