"""Resolver of demo shards, "demo:NAME/PATTERN" in the configuration of a source; they need no download."""

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from perceiver_dist.errors import UserError
from pipelines.demo.synthetic_clips import write_synthetic_clips
from pipelines.shards.source import SourceConfig
from pipelines.storage.files import copy_file, join, read_text, write_text

_PREFIX = "demo:"
_SHIPPED = Path(__file__).parent
_RENDERED = "sights_and_sounds"
_COMPLETE = "complete"
"""Marker file, written after all rendered shards, so that an interrupted rendering is repeated."""


def resolve_demo(source: SourceConfig, storage_path: str, *, render: bool = True) -> SourceConfig:
    """Replace demo shards by paths, and render them first if they are not shipped.

    Args:
        source: A source. Its shards may be "demo:fashion_mnist/PATTERN" (shipped with the package) or
            "demo:sights_and_sounds/PATTERN" (rendered once into `storage_path`/demo, in under a minute).
        storage_path: Path or URI of the folder of the runs; clips are rendered into its folder demo.
        render: Render missing clips; False only returns the paths that they would have.

    Returns:
        The source with paths or URIs; unchanged if it has no demo shards.

    Raises:
        UserError: The demo is unknown.
    """
    return replace(
        source,
        train_shards=resolve_shards(source.train_shards, storage_path, source.name, render=render),
        eval_shards=resolve_shards(source.eval_shards, storage_path, source.name, render=render),
    )


def resolve_shards(shards: str, storage_path: str, source: str, *, render: bool = True) -> str:
    """Replace one pattern of demo shards by paths, as `resolve_demo` does.

    Args:
        shards: The pattern; returned unchanged if it names no demo.
        storage_path: Path or URI of the folder of the runs; clips are rendered into its folder demo.
        source: Name of the source, for the error.
        render: Render missing clips.

    Raises:
        UserError: The demo is unknown.
    """
    if not shards.startswith(_PREFIX):
        return shards
    name, _, pattern = shards.removeprefix(_PREFIX).partition("/")
    if (_SHIPPED / name / "LICENSE").is_file():
        return f"{_SHIPPED / name}/{pattern}"
    if name != _RENDERED:
        raise UserError(f"source '{source}': unknown demo '{name}'; choose fashion_mnist or {_RENDERED}")
    folder = join(storage_path, "demo", name)
    if render and read_text(join(folder, _COMPLETE)) is None:
        _render(folder)
    return f"{folder}/{pattern}"


def _render(folder: str) -> None:
    with TemporaryDirectory() as scratch:
        # "spawn", because a fork of a process with threads, such as a driver's, could deadlock.
        with get_context("spawn").Pool() as pool:
            write_synthetic_clips(Path(scratch), starmap=pool.starmap)
        for shard in sorted(Path(scratch).iterdir()):
            copy_file(str(shard), join(folder, shard.name))
    write_text(join(folder, _COMPLETE), "")
