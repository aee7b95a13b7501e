"""MLflow record of an evaluation: a child run of the training run, in the same experiment."""

import os

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from perceiver_dist.checkpoint.run_folder import outbox_file
from perceiver_dist.errors import UserError
from perceiver_dist.inference.model_evaluation import ModelEvaluation
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_environment import DEFAULT_EXPERIMENT
from perceiver_dist.tracking.mlflow_run import MlflowRun, new_identity
from perceiver_dist.tracking.mlflow_store import local_database
from pipelines.storage.files import open_file


def record_evaluation(evaluation: ModelEvaluation, files: list[str]) -> str:
    """Record an evaluation in the MLflow that tracked its training, if that still exists.

    A missing tracker does not fail the job: the report is on disk by then.

    Args:
        evaluation: The evaluation.
        files: Paths or URIs of the report's files.

    Returns:
        One line for the screen: the run's id, or the reason why there is none.
    """
    uri = evaluation.model.config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return "none: the model's configuration names no tracking.uri, and MLFLOW_TRACKING_URI is not set"
    database = local_database(uri)
    # MLflow would create a missing SQLite file and record the evaluation there, apart from its training.
    if database is not None and not database.exists():
        return f"none: the training's {database} no longer exists"
    writer = BackgroundWriter(uri, outbox_file(evaluation.out))
    try:
        run_id = _write(evaluation, files, writer)
    except UserError as error:
        return f"none: {error}"
    finally:
        waiting = writer.close()
    return f"{run_id}; {waiting} records wait for MLflow on disk" if waiting else run_id


def _write(evaluation: ModelEvaluation, files: list[str], writer: BackgroundWriter) -> str:
    """Open a run, write to it, close it, and return its id.

    Raises:
        UserError: MLflow did not open the run.
    """
    stored = evaluation.model.stored
    training = stored.mlflow_run_id
    log = MlflowRun(
        writer,
        stored.config.tracking.experiment or DEFAULT_EXPERIMENT,
        f"evaluation of {stored.config.storage.run_name or stored.place}",
        None,
        {
            "model": stored.place,
            "batch": str(evaluation.batch),
            "views": str(evaluation.views),
            **{f"shards.{found.source.name}": found.source.eval_shards for found in evaluation.sources},
        },
        {
            "kind": "evaluation",
            **({MLFLOW_PARENT_RUN_ID: training, "training_run_id": training} if training else {}),
        },
        new_identity(),
        system_metrics=False,  # the run is opened when the evaluation is done: there is no load to record
    )
    # At the step of the checkpoint, so that the metrics line up with the curves of the training.
    log.metrics(stored.steps, evaluation.metrics)
    for file in files:
        with open_file(file) as content:
            log.file(file.rpartition("/")[2], content.read())
    log.close("FINISHED")
    return log.run_id
