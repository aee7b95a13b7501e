"""Files with a label and a split: checked, shuffled and written to shards."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perceiver_dist.errors import UserError
from pipelines.decode import FIELD_MODALITY
from pipelines.decode.container import audio_track, opened
from pipelines.source import SourceConfig
from pipelines.write import Sample, write_shards

SPLITS = {"train": "train", "eval": "eval", "validation": "eval", "val": "eval", "test": "eval"}
"""What the split column may say, and whether the shards are for training or evaluation."""


@dataclass(frozen=True)
class ListedFile:
    """A file to convert.

    Attributes:
        path: Where it is.
        label: Name of its class.
        split: train or eval.
    """

    path: Path
    label: str
    split: str


def write_files(files: Sequence[ListedFile], out: Path, samples_per_shard: int, seed: int) -> SourceConfig:
    """Write files to shards, in an order that the seed decides.

    Args:
        files: What to write; of one split there may be none.
        out: Directory to write to; its name becomes the source's.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.

    Returns:
        The source. Its class names are the labels in alphabetical order, or by number if all of them are numbers.
    """
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
    return describe(out, shards["train"], shards["eval"], _modalities(files), classes)


def check_files(files: Sequence[ListedFile], where: str) -> None:
    """Check that something can be learned from the files.

    Args:
        files: What was found.
        where: What was searched, for the message.

    Raises:
        UserError: None is for training, or all have one label.
    """
    if not any(file.split == "train" for file in files):
        raise UserError(f"{where}: lists {len(files)} files, none of them for training")
    if len({file.label for file in files}) < 2:
        raise UserError(f"{where}: has 1 label, a classification needs at least 2")


def extension(path: Path) -> str:
    """Return a file's extension as the name of a sample's field.

    Args:
        path: The file.
    """
    return path.suffix.removeprefix(".").lower()


def _file_samples(files: Sequence[ListedFile], numbers: dict[str, int]) -> Iterator[Sample]:
    for index, file in enumerate(files):
        # The name is kept for whoever traces a sample; the index makes the key unique, and it fits a tar header.
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", file.path.stem)[:60]
        yield {
            "__key__": f"{index:08d}-{name}",
            extension(file.path): file.path.read_bytes(),
            "cls": numbers[file.label],
        }


def _modalities(files: Sequence[ListedFile]) -> list[str]:
    """Modalities of the files, with audio where the first clip has a sound track."""
    modalities = {FIELD_MODALITY[extension(file.path)] for file in files}
    clip = next((file.path for file in files if FIELD_MODALITY[extension(file.path)] == "video"), None)
    if clip is not None:
        with opened(clip.read_bytes(), str(clip)) as container:
            if audio_track(container) is not None:
                modalities.add("audio")
    return sorted(modalities)


def describe(
    out: Path, train: Sequence[Path], evaluation: Sequence[Path], modalities: list[str], classes: list[str]
) -> SourceConfig:
    """Write classes.json, and return the source.

    Args:
        out: Directory of the shards.
        train: Shards to learn from.
        evaluation: Held-out shards; none is allowed.
        modalities: What samples have.
        classes: Names of the classes.
    """
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
