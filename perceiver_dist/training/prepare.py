"""Preparation of a run: every check that needs no cluster, so that mistakes are found before anything starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.cluster.connect import check_is_kept
from perceiver_dist.config.command_line import Configuration
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.shard_indexing import list_shards
from perceiver_dist.errors import UserError
from perceiver_dist.tracking.mlflow_environment import DEFAULT, MlflowPlace, mlflow_place
from perceiver_dist.tracking.mlflow_store import absolute_tracking_uri
from perceiver_dist.training.fine_tuning import check_fine_tuning
from pipelines.demo.resolve import resolve_demo
from pipelines.storage.files import absolute_uri


@dataclass(frozen=True)
class PreparedRun:
    """A checked run.

    Attributes:
        config: The resolved configuration, with the shards of demo data.
        folder: The run's folder.
        shards: Shards of every source and evaluation dataset by dataset name; empty if the run is finished.
        finished: What result.json holds, if the run is complete and its configuration unchanged; else None.
    """

    config: RunConfig
    folder: RunFolder
    shards: dict[str, list[str]]
    finished: dict[str, Any] | None


def prepare(config: RunConfig, place: MlflowPlace, report: Callable[[str], None]) -> PreparedRun:
    """Write the run's demo data and check everything that can be checked without a cluster.

    Args:
        config: The resolved configuration; its storage can be written.
        place: Where the run is recorded.
        report: Called with a line for the screen before demo data is written and remote storage is read.

    Returns:
        The run, ready to start, or to be reported as finished.

    Raises:
        UserError: The run cannot start: the checkpoint, the model to fine-tune or the shards do not fit the
            configuration or do not exist.
    """
    report(f"run {config.storage.run_name}: preparing data")
    report(place.description)
    config = with_demo_data(config)
    folder = RunFolder.of(config)
    folder.check_resumable(config)
    folder.check_initial_checkpoint(config)
    check_fine_tuning(config)
    finished = folder.finished_result(config)
    # The shards of a finished run may have been deleted since.
    return PreparedRun(config, folder, {} if finished else list_shards(config), finished)


def resolve(config: Configuration) -> Configuration:
    """Return the configuration with the run's name, the absolute storage path and the tracking URI filled in.

    Args:
        config: As the user gave it.

    Raises:
        UserError: Storage is remote and no tracking URI is given, or storage would be deleted after the job.
    """
    path = absolute_uri(config.storage.path)
    check_is_kept(path, "storage.path")
    place = place_of(config)
    if "://" in path and place.uri_origin == DEFAULT:
        raise UserError(
            f"tracking.uri is null and storage.path is {path}: MLflow's default is a local SQLite file; "
            "set tracking.uri (or MLFLOW_TRACKING_URI) to a server (http://...) or a local file (sqlite:///...)"
        )
    name = config.storage.run_name or datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S")
    return replace(
        config,
        storage=replace(config.storage, path=path, run_name=name),
        tracking=replace(config.tracking, uri=place.uri, experiment=place.experiment),
    )


def place_of(config: Configuration) -> MlflowPlace:
    """Return where a run is recorded: by its options, else by MLflow's environment variables, else by default.

    Args:
        config: As the user gave it.

    Raises:
        UserError: MLFLOW_TRACKING_URI holds a password.
    """
    default = f"sqlite:///{absolute_uri(config.storage.path)}/mlflow.db"
    place = mlflow_place(config.tracking.uri, config.tracking.experiment, default)
    return replace(place, uri=absolute_tracking_uri(place.uri))


def with_demo_data(config: Configuration) -> Configuration:
    """Return the configuration with each `demo:` source's shards, which are written to storage if they are not there.

    Args:
        config: The resolved configuration.

    Raises:
        UserError: There is no such demo.
    """
    sources = [resolve_demo(source, config.storage.path) for source in config.sources]
    return replace(config, sources=sources)
