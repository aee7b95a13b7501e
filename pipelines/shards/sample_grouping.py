"""Grouping of a shard's members into samples.

Not every member is part of a sample: README.md and Thumbs.db come with folders, __info__.json with tools of WebDataset.
Left out are members whose names have no field or begin and end with two underscores, and keys that have no medium and
no field in common with a key that has one.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipelines.errors import ShardError
from pipelines.fields import FIELD_MODALITY


@dataclass
class IndexRow:
    """A sample while its fields are collected.

    Attributes:
        fields: Offset, length and CRC-32 by field.
        problem: The first problem found; "" for none.
    """

    fields: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    problem: str = ""


def group_by_key(uri: str, members: Iterator[tuple[tarfile.TarInfo, int]]) -> tuple[dict[str, IndexRow], int]:
    """Group members into samples by the WebDataset convention: KEY.FIELD, where the key ends at the name's first dot.

    Args:
        uri: The shard, for errors.
        members: Its files, with the CRC-32 of each.

    Returns:
        The samples by key, in the order of their first members, and the number of members that are no part of one.

    Raises:
        ShardError: The shard holds no samples.
    """
    samples: dict[str, IndexRow] = {}
    strays = 0
    for member, checksum in members:
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not (stem and dot and extension) or (stem.startswith("__") and stem.endswith("__")):
            strays += 1  # such as README, .DS_Store and __info__.json
            continue
        key, name = folder + slash + stem, extension.lower()
        row = samples.setdefault(key, IndexRow())
        row.problem = row.problem or _problem(key, name, member, row)
        row.fields[name] = (member.offset_data, member.size, checksum)
    if not samples:
        raise ShardError(f"shard {uri}: holds no samples (files named KEY.FIELD); leave it out")
    alone = _keys_without_media(samples)
    strays += sum(len(samples[key].fields) for key in alone)
    return {key: row for key, row in samples.items() if key not in alone}, strays


def _keys_without_media(samples: Mapping[str, IndexRow]) -> set[str]:
    """Return the keys that have no medium, and no field in common with a key that has one; none if no key has one."""
    # The last part of a field such as seg.png tells what it is, although only the whole name is read.
    beside_media = {
        name
        for row in samples.values()
        if any(name.rpartition(".")[2] in FIELD_MODALITY for name in row.fields)
        for name in row.fields
    }
    if not beside_media:
        return set()
    return {key for key, row in samples.items() if beside_media.isdisjoint(row.fields)}


def _problem(key: str, name: str, member: tarfile.TarInfo, row: IndexRow) -> str:
    if name in row.fields:
        return f"has the field '{name}' twice; keys must be unique within a shard"
    if member.issym() or member.islnk():
        return f"its field '{name}' is a link, expected a file"
    if not member.isreg() or member.issparse():
        return f"its field '{name}' is a device or a sparse file, expected a plain file"
    if key.startswith("/") or ".." in key.split("/"):
        return "its key is an absolute path or leads out of its folder"
    return ""
