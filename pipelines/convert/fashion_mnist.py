"""Fashion-MNIST's idx files."""

import gzip
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from perceiver_dist.errors import UserError
from pipelines.convert.listed_files import describe
from pipelines.source import SourceConfig
from pipelines.write import Sample, write_shards

FASHION_MNIST_CLASSES = (
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
)

IDX_BYTES = 8
"""The type code of unsigned bytes, the only one that the MNIST family uses."""


def convert_fashion_mnist(
    idx: Path,
    out: Path,
    train_per_class: int | None = None,
    eval_per_class: int | None = None,
    samples_per_shard: int = 5000,
    seed: int = 0,
) -> SourceConfig:
    """Write Fashion-MNIST to shards of grey PNG images.

    Args:
        idx: Directory with the four files as published, train-images-idx3-ubyte and so on, packed (.gz) or not.
        out: Directory to write to; its name becomes the source's.
        train_per_class: How many images of each class to take from the training split; None for all.
        eval_per_class: How many images of each class to take from the test split; None for all.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides which images are taken, and their order.

    Returns:
        The source.

    Raises:
        UserError: A file is missing or no idx file of bytes, or a class has fewer images than asked for.
    """
    train = write_shards(_idx_samples(idx, "train", train_per_class, seed), out, "train", samples_per_shard)
    evaluation = write_shards(_idx_samples(idx, "t10k", eval_per_class, seed), out, "eval", samples_per_shard)
    return describe(out, train, evaluation, ["image"], list(FASHION_MNIST_CLASSES))


def _idx_samples(idx: Path, split: str, per_class: int | None, seed: int) -> Iterator[Sample]:
    images = read_idx(idx / f"{split}-images-idx3-ubyte")
    labels = read_idx(idx / f"{split}-labels-idx1-ubyte")
    order = np.random.default_rng(seed).permutation(len(labels))
    if per_class is not None:
        fewest = int(np.bincount(labels).min())
        if not 0 < per_class <= fewest:
            raise UserError(
                f"{per_class} images per class asked for, {split} has between 1 and {fewest} to give"
            )
        firsts = [np.flatnonzero(labels[order] == label)[:per_class] for label in np.unique(labels)]
        order = order[np.sort(np.concatenate(firsts))]
    for index in order:
        png = BytesIO()
        Image.fromarray(images[index]).save(png, "PNG", optimize=True)
        yield {"__key__": f"{split}_{index:05d}", "png": png.getvalue(), "cls": int(labels[index])}


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
