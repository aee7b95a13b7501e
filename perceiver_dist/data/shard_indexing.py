"""Shards of a run: listing by their patterns, and indexing by Ray tasks on the whole cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.shards.source import SourceConfig
from pipelines.storage.shard_list import check_hosts, expand_shards


@dataclass(frozen=True)
class SourceData:
    """The indexed shards of one source.

    Attributes:
        train: Training shards.
        evaluation: Held-out shards; None if the source has none.
    """

    train: SourceIndex
    evaluation: SourceIndex | None


def list_shards(config: RunConfig) -> dict[str, list[str]]:
    """Return the shards of every training and evaluation dataset by dataset name, without opening them.

    Args:
        config: The resolved configuration.

    Raises:
        ShardError: A pattern matches nothing, or names a web server that does not exist.
    """
    shards: dict[str, list[str]] = {}
    for source in config.sources:
        shards[source.name] = expand_shards(source.train_shards, source.name)
        if source.eval_shards:
            shards[evaluation_dataset(source)] = expand_shards(source.eval_shards, source.name)
        for uris in (shards[source.name], shards.get(evaluation_dataset(source), [])):
            check_hosts(uris, source.name)
    return shards


def index_sources(config: RunConfig, shards: dict[str, list[str]]) -> dict[str, SourceData]:
    """Index all shards on the cluster; those that are indexed already cost next to nothing.

    Args:
        config: The resolved configuration.
        shards: Shards by dataset name, from `list_shards`.

    Returns:
        The indexed shards by source name.

    Raises:
        UserError: A shard is missing, damaged or empty; the first such shard is named.
    """
    indexes = index_on_cluster(shards, config.index_folder, config.data.storage_seconds)
    return {
        source.name: SourceData(indexes[source.name], indexes.get(evaluation_dataset(source)))
        for source in config.sources
    }


def index_on_cluster(
    shards: Mapping[str, Sequence[str]], index_folder: str, storage_seconds: float
) -> dict[str, SourceIndex]:
    """Index shards on the cluster; those that are indexed already cost next to nothing.

    Args:
        shards: Paths or URIs of tar files, by any name.
        index_folder: Path or URI of the folder of the index files.
        storage_seconds: How long to retry when remote storage fails.

    Returns:
        The indexed shards by the same names.

    Raises:
        UserError: A shard is missing, damaged or empty; the first such shard is named.
    """
    # "SPREAD" uses all nodes, and keeps the tasks out of the placement group of a search's trial, which has no spare
    # CPUs.
    task: Any = ray.remote(index_shard).options(scheduling_strategy="SPREAD")
    pending = {
        name: [task.remote(uri, index_folder, storage_seconds) for uri in uris]
        for name, uris in shards.items()
    }
    try:
        # In order, so that of several bad shards the first is always the one reported, whichever task fails first.
        return {
            name: SourceIndex(ray.get(reference) for reference in references)
            for name, references in pending.items()
        }
    except UserError as error:
        raise UserError(str(getattr(error, "cause", error))) from None


def evaluation_dataset(source: SourceConfig) -> str:
    """Return the name of the Ray Train dataset with a source's held-out units.

    Args:
        source: The source.
    """
    return f"{source.name}-eval"
