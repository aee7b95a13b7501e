"""Shards that need no download: "demo:NAME/PATTERN" in a source's configuration."""

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
"""Name of a file that is written when all rendered shards are there."""


def resolve_demo(source: SourceConfig, storage_path: str, *, render: bool = True) -> SourceConfig:
    """Replace demo shards by real paths, rendering them first where they are not shipped.

    Args:
        source: A source; its shards may be "demo:fashion_mnist/PATTERN" (shipped with the package) or
            "demo:sights_and_sounds/PATTERN" (rendered once into `storage_path`/demo, in under a minute).
        storage_path: Path or URI of the folder for what is rendered.
        render: Render what is not there yet; False only says where it would be.

    Returns:
        The source with plain paths; unchanged if it has no demo shards.

    Raises:
        UserError: There is no demo of that name.
    """
    return replace(
        source,
        train_shards=resolve_shards(source.train_shards, storage_path, source.name, render=render),
        eval_shards=resolve_shards(source.eval_shards, storage_path, source.name, render=render),
    )


def resolve_shards(shards: str, storage_path: str, source: str, *, render: bool = True) -> str:
    """Replace one pattern of demo shards by real paths, as `resolve_demo` does.

    Args:
        shards: The pattern; returned as it is if it names no demo.
        storage_path: Path or URI of the folder for what is rendered.
        source: Name of the source, for the error.
        render: Render what is not there yet.

    Raises:
        UserError: There is no demo of that name.
    """
    if not shards.startswith(_PREFIX):
        return shards
    name, _, pattern = shards.removeprefix(_PREFIX).partition("/")
    if (_SHIPPED / name / "LICENSE").is_file():
        return f"{_SHIPPED / name}/{pattern}"
    if name != _RENDERED:
        raise UserError(f"source '{source}': there is no demo '{name}'; choose fashion_mnist or {_RENDERED}")
    folder = join(storage_path, "demo", name)
    if render and read_text(join(folder, _COMPLETE)) is None:
        _render(folder)
    return f"{folder}/{pattern}"


def _render(folder: str) -> None:
    with TemporaryDirectory() as scratch:
        with get_context("spawn").Pool() as pool:
            write_synthetic_clips(Path(scratch), starmap=pool.starmap)
        for shard in sorted(Path(scratch).iterdir()):
            copy_file(str(shard), join(folder, shard.name))
    write_text(join(folder, _COMPLETE), "")
