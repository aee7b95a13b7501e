"""A run's record in MLflow, opened by the tracker.

A module of its own: MLflow takes seconds to import, which the driver would spend too if the tracker's imported it.
"""

from collections.abc import Mapping

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.flatten import flatten, to_nested
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_environment import DEFAULT_EXPERIMENT
from perceiver_dist.tracking.mlflow_run import MlflowRun, new_identity
from pipelines.storage.files import read_text, write_text


def open_record(
    config: RunConfig, folder: RunFolder, model_facts: Mapping[str, str]
) -> tuple[BackgroundWriter, MlflowRun]:
    """Open or continue the MLflow run of a run.

    Args:
        config: The resolved configuration.
        folder: The run's folder, which says which MLflow run it is.
        model_facts: Computed facts of the model, logged as parameters.

    Returns:
        The writer of its records, and the run.

    Raises:
        UserError: MLflow cannot open the run.
    """
    run_id = read_text(folder.mlflow_run_id)
    identity = read_text(folder.identity) or new_identity()
    # Before the run is opened in MLflow: if this process is killed in between, the run is found again by it.
    write_text(folder.identity, identity)
    writer = BackgroundWriter(config.tracking.uri or "", folder.outbox)
    run = MlflowRun(
        writer,
        config.tracking.experiment or DEFAULT_EXPERIMENT,
        config.storage.run_name or "",
        run_id,
        {**flatten(to_nested(config)), **model_facts},
        {"sources": ",".join(config.heads), "zero_stage": str(config.deepspeed.zero_stage)},
        identity,
    )
    write_text(folder.mlflow_run_id, run.run_id)
    return writer, run
