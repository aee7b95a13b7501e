"""Conversion of listed files with labels and splits: check, shuffle, and divide into shards."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion, plan_conversion, shuffled
from pipelines.decode import FIELD_MODALITY, field_of
from pipelines.decode.container import audio_track, opened
from pipelines.shards.shard_writer import Sample

SPLITS = {"train": "train", "eval": "eval", "validation": "eval", "val": "eval", "test": "eval"}
"""Accepted names of a split, and whether its shards are for training or evaluation."""


@dataclass(frozen=True)
class ListedSample:
    """A sample to convert.

    Attributes:
        paths: Its files, each of another modality.
        labels: Its class names; exactly one for softmax.
        split: train or eval.
    """

    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class FileItem:
    """A sample of files that are read when its shard is written.

    Attributes:
        key: Its key.
        paths: Absolute paths of its files.
        label: Content of its field cls: one number, or several separated by commas.
    """

    key: str
    paths: tuple[str, ...]
    label: str

    def sample(self) -> Sample:
        """Read the files.

        Raises:
            UserError: One of them cannot be read.
        """
        fields: dict[str, bytes | int | str] = {"__key__": self.key, "cls": self.label}
        for path in map(Path, self.paths):
            try:
                fields[field_of(path)] = path.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be read ({error.strerror}); fix it and run the same command again to resume"
                ) from error
        return fields


def convert_listed(
    samples: Sequence[ListedSample],
    out: str,
    samples_per_shard: int,
    seed: int,
    classes: list[str] | None = None,
    task: str = "softmax",
    remarks: tuple[str, ...] = (),
) -> Conversion:
    """Plan the shards of listed files, in an order given by the seed.

    Args:
        samples: The samples; one of the splits may be empty.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the order of the samples.
        classes: All class names; None for the labels in alphabetical order, or numerical order if all are numbers.
        task: softmax or multilabel.
        remarks: Lines for the user.

    Returns:
        The conversion. Its modalities include audio if the first video has an audio track.
    """
    if classes is None:
        labels = {label for sample in samples for label in sample.labels}
        classes = sorted(labels, key=int) if all(map(str.isdecimal, labels)) else sorted(labels)
    numbers = {label: str(number) for number, label in enumerate(classes)}
    order = shuffled(samples, seed)
    splits = {
        split: [
            _item(index, sample, numbers)
            for index, sample in enumerate(each for each in order if each.split == split)
        ]
        for split in ("train", "eval")
    }
    return plan_conversion(splits, out, _modalities(samples), classes, samples_per_shard, task, remarks)


def check_samples(samples: Sequence[ListedSample], where: str) -> None:
    """Check that a classifier can be trained on the samples.

    Args:
        samples: The samples found.
        where: What was searched, for the error.

    Raises:
        UserError: No sample is for training, or all have the same label.
    """
    if not any(sample.split == "train" for sample in samples):
        raise UserError(f"{where}: lists {len(samples)} samples, none of them for training")
    if len({label for sample in samples for label in sample.labels}) < 2:
        raise UserError(f"{where}: has 1 label, a classification needs at least 2")


def _item(index: int, sample: ListedSample, numbers: dict[str, str]) -> FileItem:
    # The file name makes a sample traceable, the index makes the key unique. 60 characters of it leave room in the
    # 100 bytes that a tar header has for a name.
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", sample.paths[0].stem)[:60]
    return FileItem(
        key=f"{index:08d}-{name}",
        paths=tuple(str(path.absolute()) for path in sample.paths),
        label=",".join(sorted((numbers[label] for label in sample.labels), key=int)),
    )


def _modalities(samples: Sequence[ListedSample]) -> list[str]:
    """Return the modalities of the files, including audio if the first video has an audio track."""
    modalities = {FIELD_MODALITY[field_of(path)] for sample in samples for path in sample.paths}
    clip = next(
        (path for sample in samples for path in sample.paths if FIELD_MODALITY[field_of(path)] == "video"),
        None,
    )
    if clip is not None:
        with opened(clip.read_bytes(), str(clip)) as container:
            if audio_track(container) is not None:
                modalities.add("audio")
    return sorted(modalities)
