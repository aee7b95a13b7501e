"""Conversion of listed files with labels and splits: check, shuffle, and divide into shards."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion, plan_conversion, shuffled
from pipelines.decode.container import audio_track, opened
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY, field_of
from pipelines.shards.shard_writer import Sample

_SHOWN_CLASSES = 6
"""Names of classes in a remark, which should fit into one line."""


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
        The conversion. Its modalities include audio if one of some clips, spread over all, has an audio track.
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
    remarks = (*remarks, *_classes_without_training(samples))
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


_CLIPS = 32
"""Clips that are looked at for sound: enough that a few silent or damaged ones do not decide for all."""


def _modalities(samples: Sequence[ListedSample]) -> list[str]:
    """Return the modalities of the files, including audio if any of some clips has an audio track."""
    modalities = {FIELD_MODALITY[field_of(path)] for sample in samples for path in sample.paths}
    clips = [path for sample in samples for path in sample.paths if FIELD_MODALITY[field_of(path)] == "video"]
    if any(map(_has_sound, clips[:: -(-len(clips) // _CLIPS) or 1])):
        modalities.add("audio")
    return sorted(modalities)


def _has_sound(clip: Path) -> bool:
    try:
        with opened(clip.read_bytes(), "video") as media:
            return audio_track(media) is not None
    except (SampleError, OSError):
        return False  # the clip is a bad sample then, which training and lint report


def _classes_without_training(samples: Sequence[ListedSample]) -> tuple[str, ...]:
    """Return a line on classes that only held-out samples have, if there are any."""
    train, held_out = (
        {label for sample in samples if sample.split == split for label in sample.labels}
        for split in ("train", "eval")
    )
    missing = sorted(held_out - train)
    if not missing:
        return ()
    shown = ", ".join(missing[:_SHOWN_CLASSES]) + (", ..." if len(missing) > _SHOWN_CLASSES else "")
    return (f"{len(missing):,} of {len(train | held_out):,} classes have held-out samples only: {shown}",)
