"""Manifest of a checkpoint, which is written last and makes the checkpoint complete.

A checkpoint is a folder with one file per rank and `manifest.json`, which records the progress of the run and each
file's size and SHA-256. A folder without a manifest is not a checkpoint, whatever else is in it.
"""

import errno
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from perceiver_dist.checkpoint.best_score import BestScore
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
from pipelines.storage.retry import is_local, retried

MANIFEST = "manifest.json"
_LOSSES, _BEST = "unlogged_losses", "best"
_SECONDS_BETWEEN_LOOKS = 10.0
"""Time until a checkpoint on remote storage that seems damaged is read once more."""
CHUNK = 1 << 24
"""Bytes that are read, hashed or written at once: 16 MiB keeps memory small, and is large enough that the cost of a
call does not count."""


@dataclass(frozen=True)
class LossSum:
    """Losses of units that no logged step has reported yet.

    Attributes:
        total: Sum of the finite losses, in nats.
        count: Number of finite losses.
    """

    total: float
    count: int


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run.

    Attributes:
        steps: Steps taken; they determine the learning rate and the samples of the next one.
        samples_seen: Samples learned from, over all sources.
        world_size: Number of ranks that wrote the checkpoint, and of its files.
        zero_stage: ZeRO stage that wrote it; informational.
        optimizer_steps: Steps in which the optimizer changed the weights, for its bias correction. Skipped steps are
            not among them.
        unlogged_losses: Source -> losses since the last logged step, without the sources that have none. A resumed run
            adds to them, so that the next logged mean is over all steps since the last one.
        best: The best evaluation so far; None without `train.best_metric`.
    """

    steps: int
    samples_seen: int
    world_size: int
    zero_stage: int
    optimizer_steps: int
    unlogged_losses: Mapping[str, LossSum] = field(default_factory=dict)
    best: BestScore | None = None


@dataclass(frozen=True)
class StoredFile:
    """Manifest entry of one file of a checkpoint.

    Attributes:
        name: Name in the checkpoint's folder.
        bytes: Size.
        sha256: Hexadecimal digest of the content.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        progress: Progress of the run.
        files: The files, in the order of ranks.
    """

    progress: TrainingProgress
    files: tuple[StoredFile, ...]


def write_manifest(checkpoint: str, manifest: Manifest) -> None:
    """Complete a checkpoint by writing its manifest.

    Args:
        checkpoint: Path or URI of the checkpoint's folder, in which all files are stored.
        manifest: The manifest.

    Raises:
        OSError: The storage rejects the write.
    """
    write_text(join(checkpoint, MANIFEST), _text(manifest))


def read_manifest(checkpoint: str) -> Manifest:
    """Return the manifest of a checkpoint, without checking its files.

    Args:
        checkpoint: Path or URI of its folder.

    Raises:
        UserError: The manifest is missing or damaged.
    """
    manifest = _read(checkpoint)
    if isinstance(manifest, str):
        raise UserError(f"checkpoint {checkpoint} is damaged ({manifest}); use another checkpoint")
    return manifest


def find_damage(checkpoint: str) -> str:
    """Read a whole checkpoint, compare it with its manifest, and describe the first difference.

    Args:
        checkpoint: Path or URI of its folder.

    Returns:
        The first file that differs from what was written, and how; "" if the checkpoint is intact.

    Raises:
        UserError: The storage is unavailable, so that the state of the checkpoint is unknown.
    """
    damage = _find_damage(checkpoint)
    if damage and not is_local(checkpoint):
        # A store that is disturbed may have sent something else than it has.
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        damage = _find_damage(checkpoint)
    return damage


def _find_damage(checkpoint: str) -> str:
    """Return the first difference; see `find_damage`.

    Raises:
        UserError: The storage is unavailable.
    """
    try:
        manifest = _read(checkpoint)
        if isinstance(manifest, str):
            return manifest
        sizes = list_folder(checkpoint)
        # Missing and truncated files are found by the sizes, before anything large is read.
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
        # A bad disk sector is damage of this checkpoint; any other failure says nothing about it.
        if getattr(error, "errno", None) == errno.EIO:
            return f"{reason_of(error)} when reading it"
        raise UserError(
            f"checkpoint {checkpoint} cannot be read ({reason_of(error)}); retry when the storage is available"
        ) from error
    return ""


def _read(checkpoint: str) -> Manifest | str:
    """Return the manifest, or a description of what is wrong with it."""
    try:
        text = read_text(join(checkpoint, MANIFEST))
        if text is None:
            return f"{MANIFEST}: missing"
        content = json.loads(text)
        # The digest is compared below: the text is made again, and any changed byte makes it another one.
        content.pop("sha256")
        files = tuple(StoredFile(**file) for file in content.pop("files"))
        # Absent at a logged step, and in checkpoints of older versions.
        losses = {source: LossSum(**sums) for source, sums in content.pop(_LOSSES, {}).items()}
        best = BestScore(**content.pop(_BEST)) if _BEST in content else None
        manifest = Manifest(TrainingProgress(**content, unlogged_losses=losses, best=best), files)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST}: cannot be read"
    return manifest if _text(manifest) == text else f"{MANIFEST}: other content than was written"


def _text(manifest: Manifest) -> str:
    content: dict[str, Any] = {
        **asdict(manifest.progress),
        "files": [asdict(file) for file in manifest.files],
    }
    if not manifest.progress.unlogged_losses:
        del content[_LOSSES]
    if manifest.progress.best is None:
        del content[_BEST]
    # The manifest has a digest of itself, since a wrong number of steps in it would not be noticed otherwise.
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1) + "\n"


def _digest(uri: str) -> str:
    def read() -> str:
        digest = hashlib.sha256()
        filesystem, path = open_storage(uri)
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    return retried(read, uri, reads=False)
