"""A conversion: which sample goes into which shard, decided before anything is written.

It is a pure function of the options and of what was found, so every shard can be written by another process, and a
conversion that was stopped goes on with the shards that are missing.
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
    """A sample that is not read yet; its `repr` says which it is."""

    def sample(self) -> Sample:
        """Read it."""


@dataclass(frozen=True)
class Part:
    """One shard to be.

    Attributes:
        name: File name, such as train-000003.tar.
        items: Its samples, in order.
    """

    name: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Conversion:
    """Everything that is to be written.

    Attributes:
        source: The source as a run's configuration names it.
        out: Path or URI of the folder that the shards go to.
        parts: The shards.
        remarks: What the person who asked for it has to know, such as files that were not found; one line each.
    """

    source: SourceConfig
    out: str
    parts: list[Part]
    remarks: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """What tells this conversion from one of other samples, or in another order."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(repr(part).encode())
        return digest.hexdigest()


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
        splits: The samples in their order by "train" and "eval"; of the latter there may be none.
        out: Path or URI of the folder that the shards go to; its name becomes the source's.
        modalities: What samples have.
        classes: Names of the classes.
        samples_per_shard: Samples in every shard but the last of a split.
        task: softmax or multilabel.
        remarks: For the person who asked for it.

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
    """Return samples in an order that the seed decides, so that shards are alike.

    Args:
        items: The samples.
        seed: The seed.
    """
    return [items[index] for index in np.random.default_rng(seed).permutation(len(items))]


def _pattern(out: str, parts: Sequence[Part]) -> str:
    """Name several shards by one pattern: data/train-{000000..000012}.tar."""
    if len(parts) < 2:
        return "".join(join(out, part.name) for part in parts)
    (split, _, first), last = parts[0].name[:-4].rpartition("-"), parts[-1].name[:-4].rpartition("-")[2]
    return join(out, f"{split}-{{{first}..{last}}}.tar")
