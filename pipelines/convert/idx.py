"""The idx files of MNIST and Fashion-MNIST."""

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
"""The type code of unsigned bytes, the only one that the MNIST family uses."""


@dataclass(frozen=True)
class IdxItem:
    """One picture of an idx file, written as a grey PNG.

    Attributes:
        images: Absolute path of the file with the pictures.
        split: train or t10k.
        index: Which picture.
        label: Number of its class.
    """

    images: str
    split: str
    index: int
    label: int

    def sample(self) -> Sample:
        """Cut the picture out of the file, which is kept for the next one."""
        png = BytesIO()
        Image.fromarray(_cached(self.images)[self.index]).save(png, "PNG", optimize=True)
        return {"__key__": f"{self.split}_{self.index:05d}", "png": png.getvalue(), "cls": self.label}


def convert_fashion_mnist(
    idx: Path,
    out: str,
    train_per_class: int | None = None,
    eval_per_class: int | None = None,
    samples_per_shard: int = 5000,
    seed: int = 0,
) -> Conversion:
    """Convert Fashion-MNIST to grey PNG images.

    Args:
        idx: Directory with the four files as published, train-images-idx3-ubyte and so on, packed (.gz) or not.
        out: Path or URI of the folder to write to; its name becomes the source's.
        train_per_class: How many images of each class to take from the training split; None for all.
        eval_per_class: How many images of each class to take from the test split; None for all.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides which images are taken, and their order.

    Raises:
        UserError: A file is missing or no idx file of bytes, or a class has fewer images than asked for.
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
    """Convert MNIST, or what has its files and ten classes, to grey PNG images.

    Args:
        idx: Directory with the four files as published, train-images-idx3-ubyte and so on, packed (.gz) or not.
        out: Path or URI of the folder to write to; its name becomes the source's.
        train_per_class: How many images of each class to take from the training split; None for all.
        eval_per_class: How many images of each class to take from the test split; None for all.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides which images are taken, and their order.

    Raises:
        UserError: A file is missing or no idx file of bytes, or a class has fewer images than asked for.
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
    """Return the pictures of a split in their order.

    Raises:
        UserError: A file is missing or not as it must be, or has fewer pictures than asked for.
    """
    file = idx / f"{split}-images-idx3-ubyte"
    images, labels = read_idx(file), read_idx(idx / f"{split}-labels-idx1-ubyte")
    if len(images) != len(labels) or labels.max(initial=0) >= classes:
        raise UserError(
            f"{file}: has {len(images)} images, and {len(labels)} labels up to {labels.max(initial=0)} are beside it; "
            f"expected as many, of {classes} classes"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    if per_class is not None:
        fewest = int(np.bincount(labels).min())
        if not 0 < per_class <= fewest:
            raise UserError(
                f"{per_class} images per class asked for, {split} has between 1 and {fewest} to give"
            )
        firsts = [np.flatnonzero(labels[order] == label)[:per_class] for label in np.unique(labels)]
        order = order[np.sort(np.concatenate(firsts))]
    return [IdxItem(str(file.absolute()), split, int(index), int(labels[index])) for index in order]


@lru_cache(maxsize=2)
def _cached(file: str) -> np.ndarray:
    return read_idx(Path(file))


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file, the format of the MNIST family.

    Args:
        path: The file; if it is not there, the same name with .gz is read.

    Returns:
        uint8, in the shape that the file states.

    Raises:
        UserError: There is neither file, or it does not hold bytes in the shape that it states.
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
        raise UserError(f"{path}: is no idx file, or is truncated: {error}") from error
    if zeros != 0 or kind != IDX_BYTES:
        raise UserError(f"{path}: is no idx file of bytes: begins with {data[:4].hex()}, expected 000008..")
    return values
