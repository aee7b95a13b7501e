"""Known data to shards: a CSV manifest of files, Fashion-MNIST's idx files, and ModelNet's tree of meshes.

Every converter shuffles by a seed, so that shards are alike, writes train-NNNNNN.tar, eval-NNNNNN.tar and
classes.json (the names of the labels 0, 1, ...) into one directory, and returns the source as a run's
configuration names it.
"""

import gzip
import json
import re
import struct
from collections.abc import Iterator, Sequence
from csv import DictReader
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from perceiver_dist.errors import UserError
from pipelines.decode import FIELD_MODALITY
from pipelines.decode.container import audio_track, opened
from pipelines.source import SourceConfig
from pipelines.write import Sample, write_shards

SPLITS = {"train": "train", "eval": "eval", "validation": "eval", "val": "eval", "test": "eval"}
"""What the split column may say, and whether the shards are for training or evaluation."""

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


@dataclass(frozen=True)
class _File:
    """A file to convert."""

    path: Path
    label: str
    split: str


def convert_manifest(csv: Path, out: Path, samples_per_shard: int = 1000, seed: int = 0) -> SourceConfig:
    """Write the files that a CSV manifest lists to shards.

    Args:
        csv: A CSV file with the columns path, relative to the manifest, and label, any text; a third one,
            split, may say train or eval (also validation, val, test). Without it all files are for training.
        out: Directory to write to; its name becomes the source's.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.

    Returns:
        The source. Its class names are the labels in alphabetical order, or by number if all of them are numbers.

    Raises:
        UserError: The manifest is missing, lacks a column, is empty, or names a split, a kind of file or a file
            that cannot be used; the message names the line.
    """
    return _write_files(_read_manifest(csv), out, samples_per_shard, seed)


def convert_modelnet(tree: Path, out: Path, samples_per_shard: int = 500, seed: int = 0) -> SourceConfig:
    """Write the meshes of ModelNet10 or ModelNet40 to shards, as they are.

    Args:
        tree: The unpacked data set: the folder with CLASS/train/*.off and CLASS/test/*.off.
        out: Directory to write to; its name becomes the source's.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.

    Returns:
        The source. Its class names are the folders' in alphabetical order.

    Raises:
        UserError: There is no such folder, it has no such files, or only one class.
    """
    files = [
        _File(path, label=path.parts[-3], split=split)
        for folder, split in (("train", "train"), ("test", "eval"))
        for path in sorted(tree.glob(f"*/{folder}/*.off"))
        if not path.name.startswith(".")  # left in the archive by the system that packed it
    ]
    _check_files(files, f"folder {tree}: CLASS/train/*.off and CLASS/test/*.off")
    return _write_files(files, out, samples_per_shard, seed)


def _write_files(files: Sequence[_File], out: Path, samples_per_shard: int, seed: int) -> SourceConfig:
    labels = {file.label for file in files}
    classes = sorted(labels, key=int) if all(map(str.isdecimal, labels)) else sorted(labels)
    numbers = {label: number for number, label in enumerate(classes)}
    order = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    shards = {
        split: write_shards(
            _file_samples([file for file in order if file.split == split], numbers),
            out,
            split,
            samples_per_shard,
        )
        for split in ("train", "eval")
    }
    return _describe(out, shards["train"], shards["eval"], _modalities(files), classes)


def _read_manifest(manifest: Path) -> list[_File]:
    if not manifest.is_file():
        raise UserError(f"manifest {manifest}: no such file")
    with manifest.open(newline="", encoding="utf-8-sig") as lines:
        reader = DictReader(lines)
        found = reader.fieldnames or []
        missing = [column for column in ("path", "label") if column not in found]
        if missing:
            raise UserError(
                f"manifest {manifest}: has no column '{missing[0]}', only {', '.join(found) or 'none'}; "
                "the first line must name path, label and, if wanted, split"
            )
        files = [
            _manifest_row(row, f"manifest {manifest}, line {reader.line_num}", manifest) for row in reader
        ]
    _check_files(files, f"manifest {manifest}")
    return files


def _check_files(files: Sequence[_File], where: str) -> None:
    """Check that something can be learned from the files.

    Raises:
        UserError: None is for training, or all have one label.
    """
    if not any(file.split == "train" for file in files):
        raise UserError(f"{where}: lists {len(files)} files, none of them for training")
    if len({file.label for file in files}) < 2:
        raise UserError(f"{where}: has 1 label, a classification needs at least 2")


def _manifest_row(row: dict[str, str | None], where: str, manifest: Path) -> _File:
    """Check one row while the line it stands in is still known.

    Raises:
        UserError: Something in it cannot be used.
    """
    path, label, split = row["path"], row["label"], row.get("split", "train")
    if not path or not label:
        raise UserError(f"{where}: path is {path!r} and label is {label!r}; both must be given")
    if split not in SPLITS:
        raise UserError(f"{where}: split is {split!r}, must be one of {', '.join(SPLITS)}")
    if _extension(Path(path)) not in FIELD_MODALITY:
        raise UserError(f"{where}: {path} is no medium known here; known are {', '.join(FIELD_MODALITY)}")
    if not (manifest.parent / path).is_file():
        raise UserError(
            f"{where}: {manifest.parent / path}: no such file; paths are relative to the manifest"
        )
    return _File(manifest.parent / path, label, SPLITS[split])


def _extension(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def _file_samples(files: Sequence[_File], numbers: dict[str, int]) -> Iterator[Sample]:
    for index, file in enumerate(files):
        # The name is kept for whoever traces a sample; the index makes the key unique, and it fits a tar header.
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", file.path.stem)[:60]
        yield {
            "__key__": f"{index:08d}-{name}",
            _extension(file.path): file.path.read_bytes(),
            "cls": numbers[file.label],
        }


def _modalities(files: Sequence[_File]) -> list[str]:
    """Modalities of the files, with audio where the first clip has a sound track."""
    modalities = {FIELD_MODALITY[_extension(file.path)] for file in files}
    clip = next((file.path for file in files if FIELD_MODALITY[_extension(file.path)] == "video"), None)
    if clip is not None:
        with opened(clip.read_bytes(), str(clip)) as container:
            if audio_track(container) is not None:
                modalities.add("audio")
    return sorted(modalities)


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
    return _describe(out, train, evaluation, ["image"], list(FASHION_MNIST_CLASSES))


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


def _describe(
    out: Path, train: Sequence[Path], evaluation: Sequence[Path], modalities: list[str], classes: list[str]
) -> SourceConfig:
    (out / "classes.json").write_text(
        json.dumps(classes, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    return SourceConfig(
        name=re.sub(r"\W|^(?=\d)", "_", out.resolve().name),
        train_shards=_brace_pattern(train),
        eval_shards=_brace_pattern(evaluation),
        modalities=modalities,
        num_classes=len(classes),
        class_names=classes,
    )


def _brace_pattern(shards: Sequence[Path]) -> str:
    """Name several shards by one pattern: data/train-{000000..000012}.tar."""
    if len(shards) < 2:
        return "".join(map(str, shards))
    name, _, first = shards[0].stem.rpartition("-")
    last = shards[-1].stem.rpartition("-")[2]
    return str(shards[0].with_name(f"{name}-{{{first}..{last}}}.tar"))
