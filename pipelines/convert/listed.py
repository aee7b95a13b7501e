"""Files with labels and a split: checked, shuffled, and divided into shards."""

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
"""What a split may be called, and whether its shards are for training or evaluation."""


@dataclass(frozen=True)
class ListedSample:
    """A sample to convert.

    Attributes:
        paths: Its files, of different modalities.
        labels: Names of its classes; exactly one for softmax.
        split: train or eval.
    """

    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class FileItem:
    """A sample of files, to be read when its shard is written.

    Attributes:
        key: Its key.
        paths: Absolute paths of its files.
        label: What its field cls holds: a number, or several with commas.
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
                    f"{path}: cannot be read ({error.strerror}); the same command goes on when it can"
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
    """Plan the shards of files, in an order that the seed decides.

    Args:
        samples: What to write; of one split there may be none.
        out: Path or URI of the folder to write to; its name becomes the source's.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.
        classes: Names of all classes; None for the labels in alphabetical order, or by number if all are numbers.
        task: softmax or multilabel.
        remarks: For the person who asked for it.

    Returns:
        The conversion. Audio is among its modalities if the first clip has a sound track.
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
    """Check that something can be learned from the samples.

    Args:
        samples: What was found.
        where: What was searched, for the message.

    Raises:
        UserError: None is for training, or all have one label.
    """
    if not any(sample.split == "train" for sample in samples):
        raise UserError(f"{where}: lists {len(samples)} samples, none of them for training")
    if len({label for sample in samples for label in sample.labels}) < 2:
        raise UserError(f"{where}: has 1 label, a classification needs at least 2")


def _item(index: int, sample: ListedSample, numbers: dict[str, str]) -> FileItem:
    # The name is kept for whoever traces a sample; the index makes the key unique, and it fits a tar header.
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", sample.paths[0].stem)[:60]
    return FileItem(
        key=f"{index:08d}-{name}",
        paths=tuple(str(path.absolute()) for path in sample.paths),
        label=",".join(sorted((numbers[label] for label in sample.labels), key=int)),
    )


def _modalities(samples: Sequence[ListedSample]) -> list[str]:
    """Modalities of the files, with audio where the first clip has a sound track."""
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
