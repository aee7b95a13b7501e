"""Precedence of options over MLflow's variables over defaults, and what the tracker's process gets."""

from dataclasses import replace

import pytest
from ranks import CONFIG

from perceiver_dist.config.run_config import StorageConfig, TrackingConfig
from perceiver_dist.errors import UserError
from perceiver_dist.tracking.mlflow_environment import client_variables, mlflow_place
from perceiver_dist.training.prepare import resolve

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset MLflow's variables of the machine that runs the tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_options_win_over_variables_and_variables_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    place = mlflow_place(None, None, "sqlite:///runs/mlflow.db")
    assert (place.uri, place.experiment) == ("sqlite:///runs/mlflow.db", "perceiver")
    assert place.description == ("MLflow: sqlite:///runs/mlflow.db (default), experiment perceiver (default)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "clips")
    place = mlflow_place(None, None, "x")
    assert place.description == (
        "MLflow: http://server:5000 (MLFLOW_TRACKING_URI), experiment clips (MLFLOW_EXPERIMENT_NAME)"
    )
    place = mlflow_place("http://other", "mine", "x")
    assert place.description == ("MLflow: http://other (tracking.uri), experiment mine (tracking.experiment)")


def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert mlflow_place(None, None, "x").uri == "x"


@pytest.mark.parametrize(
    ("variable", "value", "remark"),
    [
        ("MLFLOW_RUN_ID", "0123", "; MLFLOW_RUN_ID is not used: the run's folder says which MLflow run it continues"),
        ("MLFLOW_EXPERIMENT_ID", "7", "; MLFLOW_EXPERIMENT_ID is not used: set MLFLOW_EXPERIMENT_NAME or "
         "tracking.experiment to the experiment's name"),
        ("MLFLOW_ENABLE_ASYNC_LOGGING", "true", "; MLFLOW_ENABLE_ASYNC_LOGGING is not used: records are sent from a "
         "queue on disk"),
        ("MLFLOW_ENABLE_ASYNC_LOGGING", "false", ""),
    ],
)  # fmt: skip
def test_what_is_not_used_is_said(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, remark: str
) -> None:
    monkeypatch.setenv(variable, value)
    shown = mlflow_place("u", "e", "x").description
    assert shown == f"MLflow: u (tracking.uri), experiment e (tracking.experiment){remark}"


def test_a_password_in_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@server")
    with pytest.raises(
        UserError, match=r"MLFLOW_TRACKING_URI holds a password .* MLFLOW_TRACKING_USERNAME and"
    ) as caught:
        mlflow_place(None, None, "x")
    assert "secret" not in str(caught.value)


def test_remote_storage_needs_a_server_from_an_option_or_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, storage=StorageConfig("s3://bucket/runs"), tracking=TrackingConfig())
    with pytest.raises(UserError, match=r"set tracking.uri \(or MLFLOW_TRACKING_URI\) to a server"):
        resolve(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve(config).tracking == TrackingConfig("http://server:5000", "perceiver")


def test_the_tracker_gets_what_clients_read() -> None:
    environment = {
        "MLFLOW_TRACKING_TOKEN": "t",
        "AWS_PROFILE": "p",
        "https_proxy": "h",
        "PATH": "x",
        "RAY_ADDRESS": "y",
    }
    assert set(client_variables(environment)) == {"MLFLOW_TRACKING_TOKEN", "AWS_PROFILE", "https_proxy"}
