"""Training with all files at s3:// on a local S3 server: shards, index, checkpoints, records, resume."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import small_run
from served_s3 import BUCKET, CREDENTIALS, served_s3

from perceiver_dist.config.command_line import to_yaml

pytestmark = pytest.mark.runs


class Store(NamedTuple):
    """A bucket with the shards of the small run.

    Attributes:
        address: Endpoint URL of the server.
        client: boto3's S3 client.
        local: A local folder for everything that is not in the bucket.
    """

    address: str
    client: Any
    local: Path

    def train(self, run_name: str, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run the job with everything in the bucket except MLflow's records."""
        config = small_run.small_config(Path("SHARDS"), Path("RUNS"), run_name, steps=20)
        file = self.local / "config.yaml"
        text = to_yaml(config).replace("SHARDS", f"s3://{BUCKET}/data").replace("RUNS", f"s3://{BUCKET}/runs")
        file.write_text(text)
        tracking = f"sqlite:///{self.local}/mlflow.db"
        return subprocess.run(
            [
                sys.executable,
                "jobs/train_multimodal.py",
                f"--config={file}",
                f"--tracking.uri={tracking}",
                *options,
            ],
            env={**os.environ, "AWS_ENDPOINT_URL": self.address, **CREDENTIALS, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def text(self, key: str) -> str:
        """Return the content of a file in the bucket."""
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content.decode()

    def losses(self, run_name: str) -> list[float]:
        """Return the training loss of every logged step of a run."""
        entries = map(json.loads, self.text(f"runs/{run_name}/metrics.jsonl").splitlines())
        return [entry["train/loss"] for entry in entries if "train/loss" in entry]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    local = tmp_path_factory.mktemp("local")
    small_run.write_data(local / "data")
    with served_s3(local, (local / "data").rglob("*.tar")) as (address, client):
        yield Store(address, client, local)


@pytest.fixture(scope="module")
def trained(store: Store) -> Store:
    """The store with an undisturbed run in it."""
    job = store.train("undisturbed")
    assert job.returncode == 0, job.stdout + job.stderr
    return store


def test_a_run_in_a_bucket_completes(trained: Store) -> None:
    result = json.loads(trained.text("runs/undisturbed/result.json"))
    assert (result["exit"], result["steps"]) == ("completed", 20)
    assert result["checkpoint"] == f"s3://{BUCKET}/runs/undisturbed/step-00000020"
    assert not (trained.local / "undisturbed").exists()


@pytest.mark.long
def test_a_run_in_a_bucket_resumes_with_the_same_losses(trained: Store) -> None:
    for options in (["--train.stop_at=10"], []):
        job = trained.train("resumed", *options)
        assert job.returncode == 0, job.stdout + job.stderr
    assert trained.losses("resumed") == trained.losses("undisturbed")


def test_each_shard_in_a_bucket_has_one_index_there(trained: Store) -> None:
    listed = trained.client.list_objects_v2(Bucket=BUCKET, Prefix="runs/index/")["Contents"]
    indexes = [entry["Key"] for entry in listed if entry["Key"].endswith(".parquet")]
    assert len(indexes) == len(list((trained.local / "data").rglob("*.tar")))


@pytest.mark.parametrize(
    ("denied", "environment", "reason"),
    [
        (True, {}, "403|ACCESS_DENIED|InvalidAccessKeyId"),
        (False, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "connect|resolve|NETWORK"),
    ],
)
def test_an_inaccessible_bucket_fails_with_one_line(
    store: Store, denied: bool, environment: dict[str, str], reason: str
) -> None:
    try:
        requests.post(f"{store.address}/moto-api/reset-auth", data="0" if denied else "inf", timeout=30)
        job = store.train("denied", **environment)
    finally:
        requests.post(f"{store.address}/moto-api/reset-auth", data="inf", timeout=30)
    assert job.returncode == 2
    line = job.stderr.strip()
    assert line.startswith(f"error: storage.path is 's3://{BUCKET}/runs', which cannot be written (")
    assert "\n" not in line
    assert any(word in line for word in reason.split("|")), line
