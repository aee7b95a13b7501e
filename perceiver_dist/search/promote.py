"""The best trial's model in MLflow's model registry, under an alias that programs can ask for."""

from perceiver_dist.checkpoint.stored_model import StoredModel
from perceiver_dist.config.command_line import read_run
from perceiver_dist.errors import UserError
from perceiver_dist.export.mlflow_model import register_model
from perceiver_dist.search.study.search_record import SearchRecord


def promote_best(record: SearchRecord, config_yaml: str, tracking_uri: str, name: str, alias: str) -> str:
    """Register the model of the best trial, so that `mlflow.pyfunc.load_model("models:/NAME@ALIAS")` loads it.

    Args:
        record: The search.
        config_yaml: The best trial's configuration.
        tracking_uri: Address of MLflow, which holds the registry too.
        name: Name of the registered model, made when missing.
        alias: Alias that the new version gets; it moves there from an older one.

    Returns:
        The new version.

    Raises:
        UserError: No trial was completed, its checkpoint is gone, or MLflow does not register the model.
    """
    best = record.best
    if best is None or best.checkpoint is None:
        raise UserError("--promote: no trial was completed, so there is no model to register")
    stored = StoredModel(best.checkpoint, read_run(config_yaml), best.mlflow_run_id)
    return register_model(stored, tracking_uri, name, alias)
