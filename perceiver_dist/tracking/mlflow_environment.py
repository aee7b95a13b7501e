"""MLflow's standard environment variables: which are used, and in which order with options.

An option that is given wins over a variable, and a variable over the default. MLflow's client, which runs in the
tracker's process, reads all others itself: MLFLOW_TRACKING_USERNAME, _PASSWORD, _TOKEN and _INSECURE_TLS,
MLFLOW_S3_ENDPOINT_URL, MLFLOW_REGISTRY_URI, ... On a cluster that process has the environment of `ray start`, so the
driver sends it its own (`client_variables`). This module does not import MLflow, which takes a second.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from perceiver_dist.config.credentials import refuse_credentials

DEFAULT = "default"
"""Origin of what neither an option nor a variable sets."""
DEFAULT_EXPERIMENT = "perceiver"

_CLIENT_PREFIXES = ("MLFLOW_", "AWS_", "GOOGLE_", "GOOGLE_CLOUD_", "AZURE_", "DATABRICKS_")
"""Variables of MLflow and of the clients with which it stores files."""
_CLIENT_NAMES = {
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
}

_UNUSED = {
    "MLFLOW_RUN_ID": "the run's folder says which MLflow run it continues",
    "MLFLOW_EXPERIMENT_ID": "set MLFLOW_EXPERIMENT_NAME or tracking.experiment to the experiment's name",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "records are sent from a queue on disk",
}
"""Variables that would decide where records go if this project used `mlflow.start_run`, and why they do not."""


@dataclass(frozen=True)
class MlflowPlace:
    """Where a run is recorded.

    Attributes:
        uri: MLflow tracking URI.
        uri_origin: The option or variable that sets it; "default" if none does.
        experiment: Name of the experiment.
        description: One line for the screen: both, where they come from, and which variables are not used.
    """

    uri: str
    uri_origin: str
    experiment: str
    description: str


def mlflow_place(uri: str | None, experiment: str | None, default_uri: str) -> MlflowPlace:
    """Decide where a run is recorded.

    Args:
        uri: `tracking.uri`.
        experiment: `tracking.experiment`.
        default_uri: The URI if neither the option nor MLFLOW_TRACKING_URI is set.

    Raises:
        UserError: MLFLOW_TRACKING_URI holds a password.
    """
    # It becomes the option's value, which is written to config.yaml.
    refuse_credentials({"MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", "")})
    chosen_uri, uri_origin = _chosen(uri, "tracking.uri", "MLFLOW_TRACKING_URI", default_uri)
    name, name_origin = _chosen(
        experiment, "tracking.experiment", "MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT
    )
    unused = [f"{variable} is not used: {why}" for variable, why in _UNUSED.items() if _counts(variable)]
    line = f"MLflow: {chosen_uri} ({uri_origin}), experiment {name} ({name_origin})"
    return MlflowPlace(chosen_uri, uri_origin, name, "; ".join([line, *unused]))


def client_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that MLflow's client needs where it runs. Some are secret.

    Args:
        environment: The driver's environment.
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_CLIENT_PREFIXES) or name.upper() in _CLIENT_NAMES
    }


def _chosen(option: str | None, name: str, variable: str, default: str) -> tuple[str, str]:
    """Return a value and where it comes from. An empty variable counts as not set, as in MLflow."""
    if option:
        return option, name
    value = os.environ.get(variable)
    return (value, variable) if value else (default, DEFAULT)


def _counts(variable: str) -> bool:
    """Return whether a variable is set and would have an effect in MLflow."""
    if variable == "MLFLOW_EXPERIMENT_ID" and os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        return False  # in MLflow, too, the name wins
    return os.environ.get(variable, "").lower() not in ("", "false", "0")
