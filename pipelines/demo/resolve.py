"""Shards that need no download: "demo:NAME/PATTERN" in a source's configuration."""

from dataclasses import replace
from pathlib import Path

from perceiver_dist.errors import UserError
from pipelines.source import SourceConfig

_PREFIX = "demo:"
_SHIPPED = Path(__file__).parent
_RENDERED = "sights_and_sounds"


def resolve_demo(source: SourceConfig, storage_path: str) -> SourceConfig:
    """Replace demo shards by real paths, rendering them first where they are not shipped.

    Args:
        source: A source; its shards may be "demo:fashion_mnist/PATTERN" (shipped with the package) or
            "demo:sights_and_sounds/PATTERN" (rendered once into `storage_path`/demo, in under a minute).
        storage_path: Folder for what is rendered.

    Returns:
        The source with plain paths; unchanged if it has no demo shards.

    Raises:
        UserError: There is no demo of that name, or it would have to be rendered to remote storage.
    """
    return replace(
        source,
        train_shards=_resolve(source.train_shards, storage_path, source.name),
        eval_shards=_resolve(source.eval_shards, storage_path, source.name),
    )


def _resolve(shards: str, storage_path: str, source: str) -> str:
    if not shards.startswith(_PREFIX):
        return shards
    name, _, pattern = shards.removeprefix(_PREFIX).partition("/")
    if (_SHIPPED / name).is_dir():
        return f"{_SHIPPED / name}/{pattern}"
    if name != _RENDERED:
        raise UserError(f"source '{source}': there is no demo '{name}'; choose fashion_mnist or {_RENDERED}")
    return f"{storage_path}/{pattern}"
