"""Shards that need no download: "demo:NAME/PATTERN" in a source's configuration."""

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.demo.sights_and_sounds import write_sights_and_sounds
from pipelines.source import SourceConfig

_PREFIX = "demo:"
_SHIPPED = Path(__file__).parent
_RENDERED = "sights_and_sounds"


def resolve_demo(source: SourceConfig, storage_path: str, *, render: bool = True) -> SourceConfig:
    """Replace demo shards by real paths, rendering them first where they are not shipped.

    Args:
        source: A source; its shards may be "demo:fashion_mnist/PATTERN" (shipped with the package) or
            "demo:sights_and_sounds/PATTERN" (rendered once into `storage_path`/demo, in under a minute).
        storage_path: Folder for what is rendered.
        render: Render what is not there yet; False only says where it would be.

    Returns:
        The source with plain paths; unchanged if it has no demo shards.

    Raises:
        UserError: There is no demo of that name, or it would have to be rendered to remote storage.
    """
    return replace(
        source,
        train_shards=_resolve(source.train_shards, storage_path, source.name, render),
        eval_shards=_resolve(source.eval_shards, storage_path, source.name, render),
    )


def _resolve(shards: str, storage_path: str, source: str, render: bool) -> str:
    if not shards.startswith(_PREFIX):
        return shards
    name, _, pattern = shards.removeprefix(_PREFIX).partition("/")
    if (_SHIPPED / name / "LICENSE").is_file():
        return f"{_SHIPPED / name}/{pattern}"
    if name != _RENDERED:
        raise UserError(f"source '{source}': there is no demo '{name}'; choose fashion_mnist or {_RENDERED}")
    if "://" in storage_path:
        raise UserError(
            f"source '{source}': demo clips are rendered to a local folder, storage.path is {storage_path}"
        )
    folder = Path(storage_path) / "demo" / name
    if render and not folder.is_dir():
        _render(folder)
    return f"{folder}/{pattern}"


def _render(folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    with get_context("spawn").Pool() as pool:
        write_sights_and_sounds(partial, starmap=pool.starmap)
    partial.rename(folder)
