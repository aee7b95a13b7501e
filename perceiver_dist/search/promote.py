"""Registration of the best trial's model in the MLflow model registry, under an alias."""

from perceiver_dist.checkpoint.stored_model import StoredModel
from perceiver_dist.config.command_line import read_run
from perceiver_dist.errors import UserError
from perceiver_dist.export.mlflow_model import register_model
from perceiver_dist.search.study.search_record import SearchRecord


def promote_best(record: SearchRecord, config_yaml: str, tracking_uri: str, name: str, alias: str) -> str:
    """Register the model of the best trial, so that `mlflow.pyfunc.load_model("models:/NAME@ALIAS")` loads it.

    Args:
        record: Record of the search.
        config_yaml: Configuration of the best trial.
        tracking_uri: Address of MLflow, tracking server and model registry.
        name: Name of the registered model; created if missing.
        alias: Alias of the new version; moved from the version that had it.

    Returns:
        The new version.

    Raises:
        UserError: No trial was completed, its checkpoint is missing, or MLflow cannot register the model.
    """
    best = record.best
    if best is None or best.checkpoint is None:
        raise UserError("--promote: no trial was completed, so there is no model to register")
    stored = StoredModel(best.checkpoint, read_run(config_yaml), best.mlflow_run_id)
    return register_model(stored, tracking_uri, name, alias)
