"""What says that a checkpoint is whole: its manifest, which is written last.

A checkpoint is a folder with one file of every rank and `manifest.json`, which says what the files hold and, for
each, its size and SHA-256. Without a manifest the folder is no checkpoint, whatever else is in it.
"""

import errno
import hashlib
import json
from dataclasses import asdict, dataclass

from perceiver_dist.errors import UserError
from pipelines.storage.files import (
    STORAGE_ERRORS,
    join,
    list_folder,
    open_storage,
    read_text,
    reason_of,
    write_text,
)

MANIFEST = "manifest.json"
CHUNK = 1 << 24
"""Bytes that are read or written at once."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run has come.

    Attributes:
        steps: Steps taken; the learning rate and the samples of the next one follow from it.
        samples_seen: Samples learned from, all sources together.
        world_size: Number of ranks that wrote the checkpoint, and of its files.
        zero_stage: ZeRO stage that wrote it; for information.
        optimizer_steps: Times that AdamW changed the weights, for its bias correction.
    """

    steps: int
    samples_seen: int
    world_size: int
    zero_stage: int
    optimizer_steps: int


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint as it was written.

    Attributes:
        name: Its name in the checkpoint's folder.
        bytes: Its size.
        sha256: Digest of its content, in hexadecimal.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds.

    Attributes:
        progress: How far the run had come.
        files: The files, by rank.
    """

    progress: TrainingProgress
    files: tuple[StoredFile, ...]


def write_manifest(checkpoint: str, manifest: Manifest) -> None:
    """Make a folder a checkpoint.

    Args:
        checkpoint: Path or URI of the folder, in which all files are stored.
        manifest: What is in it.

    Raises:
        OSError: The storage refuses.
    """
    write_text(join(checkpoint, MANIFEST), _text(manifest))


def read_manifest(checkpoint: str) -> Manifest:
    """Return what a checkpoint says of itself; its files are not looked at.

    Args:
        checkpoint: Path or URI of its folder.

    Raises:
        UserError: It has no manifest, or one that is damaged.
    """
    manifest = _read(checkpoint)
    if isinstance(manifest, str):
        raise UserError(f"checkpoint {checkpoint} is damaged ({manifest}); take another one")
    return manifest


def find_damage(checkpoint: str) -> str:
    """Read all of a checkpoint, and say what is wrong with it.

    Args:
        checkpoint: Path or URI of its folder.

    Returns:
        The first file that is not what was written, and what was found; "" if all are.

    Raises:
        UserError: The storage does not answer, so that nothing is known of the checkpoint.
    """
    try:
        manifest = _read(checkpoint)
        if isinstance(manifest, str):
            return manifest
        sizes = list_folder(checkpoint)
        for file in manifest.files:
            size = sizes.get(file.name)
            if size is None:
                return f"{file.name}: missing"
            if size != file.bytes:
                return f"{file.name}: {size:,} bytes of {file.bytes:,}"
        for file in manifest.files:
            if _digest(join(checkpoint, file.name)) != file.sha256:
                return f"{file.name}: other content than was written"
    except STORAGE_ERRORS as error:
        if getattr(error, "errno", None) == errno.EIO:
            return f"{reason_of(error)} when reading it"
        raise UserError(
            f"checkpoint {checkpoint} cannot be read ({reason_of(error)}); start again when the storage answers"
        ) from error
    return ""


def _read(checkpoint: str) -> Manifest | str:
    """Return the manifest, or what is wrong with it."""
    try:
        text = read_text(join(checkpoint, MANIFEST))
        if text is None:
            return f"{MANIFEST}: missing"
        content = json.loads(text)
        content.pop("sha256")
        files = tuple(StoredFile(**file) for file in content.pop("files"))
        manifest = Manifest(TrainingProgress(**content), files)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST}: cannot be read"
    return manifest if _text(manifest) == text else f"{MANIFEST}: other content than was written"


def _text(manifest: Manifest) -> str:
    content = {**asdict(manifest.progress), "files": [asdict(file) for file in manifest.files]}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1) + "\n"


def _digest(uri: str) -> str:
    digest = hashlib.sha256()
    filesystem, path = open_storage(uri)
    with filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
