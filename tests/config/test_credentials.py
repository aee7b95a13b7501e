"""Tests that options with passwords or keys are refused, in one line that says where the secret belongs instead."""

import pytest

from perceiver_dist.config.command_line import parse_run, run_parser
from perceiver_dist.config.credentials import refuse_credentials
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError

SECRET = "hunter2-Very/Secret"  # noqa: S105 # made up
DEFAULT = "jobs/configs/default.yaml"


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        (
            "tracking.uri",
            f"https://me:{SECRET}@host/mlflow",
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS",
        ),
        ("tracking.uri", f"postgresql+psycopg2://me:{SECRET}@host/mlflow", "PGPASSWORD, or ~/.pgpass"),
        (
            "storage.path",
            f"s3://AKIA:{SECRET}@bucket/runs",
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or",
        ),
        ("storage.path", f"s3://bucket/runs?access_key=AKIA&secret_key={SECRET}", "AWS_ACCESS_KEY_ID"),
        ("data.index_path", f"gs://:{SECRET}@bucket/index", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("train.start_from", f"https://host/step-00000001?sv=2024&sig={SECRET}", "FSSPEC_HTTPS"),
        ("train.start_from", f"https://host/a?X-Amz-Signature={SECRET}", "FSSPEC_HTTPS"),
        ("train.start_from", f"https://host/a?X-Amz-Security-Token={SECRET}", "FSSPEC_HTTPS"),
        ("tracking.experiment", f"abc?password={SECRET}", "environment variables or files"),
    ],
)
def test_an_option_with_a_credential_is_refused(option: str, value: str, remedy: str) -> None:
    with pytest.raises(UserError, match=f"^{option} holds a password or key, .* by .*{remedy}") as refused:
        parse_run(run_parser(""), [f"--{option}={value}"], [DEFAULT], RunConfig)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_sources_and_deepspeed_overrides_are_checked_too() -> None:
    source = {"name": "clips", "train_shards": f"https://host/{{0..9}}.tar?token={SECRET}"}
    with pytest.raises(UserError, match=r"^sources\.clips\.train_shards holds"):
        refuse_credentials({"sources": [source]})
    with pytest.raises(UserError, match=r"^deepspeed\.overrides\.comet\.api_key holds"):
        refuse_credentials({"deepspeed": {"overrides": {"comet": {"api_key": SECRET}}}})


@pytest.mark.parametrize(
    "value",
    [
        "runs",
        "sqlite:///runs/mlflow.db",
        "http://host:5000",
        "http://host:5000/place@2?version=3",
        "s3://bucket/runs@v1",
        "https://user@host/file",
        "s3://bucket/train-{000000..000099}.tar?region=eu&endpoint_override=host:9000",
        "https://host/a?token=",
        "demo:train",
    ],
)
def test_a_value_without_a_credential_is_accepted(value: str) -> None:
    refuse_credentials({"storage": {"path": value, "steps": 3, "none": None}, "train": {"max_tokens": 7}})
