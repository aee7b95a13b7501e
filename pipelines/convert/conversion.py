"""Plan of a conversion: which sample goes into which shard, decided before anything is written.

The plan is a pure function of the options and of the files found. So every shard can be written by another process,
and a conversion that was stopped resumes with the missing shards.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from perceiver_dist.errors import UserError
from pipelines.shards.shard_writer import Sample
from pipelines.shards.source import SourceConfig
from pipelines.storage.files import join

Listed = TypeVar("Listed")


class Item(Protocol):
    """A sample that is not read yet. Its `repr` identifies it and is part of a conversion's fingerprint."""

    def sample(self) -> Sample:
        """Read the sample."""


@dataclass(frozen=True)
class Part:
    """One planned shard.

    Its name, its fields and those of every `Item` are part of a conversion's fingerprint: renaming one would keep
    conversions that were begun before from resuming.

    Attributes:
        name: File name, such as train-000003.tar.
        items: The samples, in order.
    """

    name: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Conversion:
    """Everything to write.

    Attributes:
        source: The source, as in the configuration of a run.
        out: Path or URI of the output folder.
        parts: The shards.
        remarks: What the user has to know, such as files that were not found; one line each.
    """

    source: SourceConfig
    out: str
    parts: list[Part]
    remarks: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 that differs for other samples, another order or other shards."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(repr(part).encode())
        return digest.hexdigest()

    def count_samples(self, split: str) -> int:
        """Return the number of samples of a split.

        Args:
            split: train or eval.
        """
        return sum(len(part.items) for part in self.parts if part.name.startswith(f"{split}-"))


def plan_conversion(
    splits: Mapping[str, Sequence[Item]],
    out: str,
    modalities: Sequence[str],
    classes: list[str],
    samples_per_shard: int,
    task: str = "softmax",
    remarks: tuple[str, ...] = (),
) -> Conversion:
    """Divide samples into shards.

    Args:
        splits: The samples in order, by "train" and "eval"; "eval" may be empty.
        out: Path or URI of the output folder; its last part becomes the name of the source.
        modalities: Modalities of the samples.
        classes: Class names, in the order of their numbers.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        task: softmax or multilabel.
        remarks: Lines for the user.

    Raises:
        UserError: `samples_per_shard` is not positive.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}, must be at least 1")
    parts = {
        split: [
            Part(
                f"{split}-{start // samples_per_shard:06d}.tar",
                tuple(items[start : start + samples_per_shard]),
            )
            for start in range(0, len(items), samples_per_shard)
        ]
        for split, items in splits.items()
    }
    # The name of a source is an identifier: other characters, and a leading digit, get an underscore.
    source = SourceConfig(
        name=re.sub(r"\W|^(?=\d)", "_", out.rstrip("/").rpartition("/")[2]),
        train_shards=_pattern(out, parts.get("train", [])),
        eval_shards=_pattern(out, parts.get("eval", [])),
        modalities=sorted(modalities),
        num_classes=len(classes),
        class_names=classes,
        task="multilabel" if task == "multilabel" else "softmax",
    )
    return Conversion(source, out, [part for some in parts.values() for part in some], remarks)


def shuffled(items: Sequence[Listed], seed: int) -> list[Listed]:
    """Return samples in an order given by the seed, so that every shard is a random subset.

    Args:
        items: The samples.
        seed: The seed.
    """
    return [items[index] for index in np.random.default_rng(seed).permutation(len(items))]


def _pattern(out: str, parts: Sequence[Part]) -> str:
    """Return one pattern for all shards: data/train-{000000..000012}.tar."""
    if len(parts) < 2:
        return "".join(join(out, part.name) for part in parts)
    (split, _, first), last = parts[0].name[:-4].rpartition("-"), parts[-1].name[:-4].rpartition("-")[2]
    return join(out, f"{split}-{{{first}..{last}}}.tar")
