"""The best trial's model in MLflow's model registry, under an alias that programs can ask for."""

import tempfile
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors.torch import save_file

from perceiver_dist.errors import UserError
from perceiver_dist.search.record import SearchRecord
from perceiver_dist.training.checkpoint import read_weights

MODEL_FOLDER = "model"
WEIGHTS = "weights.safetensors"


def parse_model_name(promote: str) -> tuple[str, str]:
    """Return name and alias of a registered model.

    Args:
        promote: NAME@ALIAS, as in MLflow's models:/NAME@ALIAS.

    Raises:
        UserError: It is not of this form.
    """
    name, at, alias = promote.partition("@")
    if not (name and at and alias) or set(promote) & set("/: "):
        raise UserError(f"--promote is '{promote}', must be NAME@ALIAS, such as perceiver@champion")
    return name, alias


def promote_best(record: SearchRecord, config_yaml: str, tracking_uri: str, name: str, alias: str) -> str:
    """Register the model of the best trial: its weights, and the configuration that builds the model for them.

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
    client = MlflowClient(tracking_uri)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "config.yaml").write_text(config_yaml)
            save_file(read_weights(best.checkpoint), f"{scratch}/{WEIGHTS}")
            for file in ("config.yaml", WEIGHTS):
                client.log_artifact(best.mlflow_run_id, f"{scratch}/{file}", MODEL_FOLDER)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"runs:/{best.mlflow_run_id}/{MODEL_FOLDER}"
        version = client.create_model_version(name, source, best.mlflow_run_id)
        client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as failure:
        raise UserError(
            f"--promote: MLflow at {tracking_uri} says: {str(failure).splitlines()[0]}"
        ) from failure
    return str(version.version)
