"""Small runs of which everything is remote: shards on S3 and on a web server, the folder on S3, MLflow on a server.

Each of the three is behind a `FaultyProxy`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import disturbed_run
import numpy as np
import small_run
from disturbed_run import STEPPING, Report
from faulty_proxy import FaultyProxy, Kind, wait
from mlflow.tracking import MlflowClient
from served_mlflow import ServedMlflow
from served_s3 import BUCKET, CREDENTIALS, served_s3

from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig

MAX_SECONDS_OF_FAULT = 8.0
"""Some requests of a fault are retried by clients themselves, others by this project."""
MAX_SECONDS_BETWEEN_FAULTS = 5.0


class RangeServer(SimpleHTTPRequestHandler):
    """Web server of a folder that sends byte ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        end = min(int(last or len(content)), len(content) - 1)
        part = content[int(first) : end + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@dataclass
class Place:
    """Servers behind proxies, and a local folder for what is compared.

    Attributes:
        stores: The proxies before S3 and the web server, by name.
        mlflow: The proxy before MLflow.
        server: MLflow.
        s3: boto3's client of the real S3.
        local: A local folder.
    """

    stores: dict[str, FaultyProxy]
    mlflow: FaultyProxy
    server: ServedMlflow
    s3: Any
    local: Path

    def config_of(self, name: str, **train: Any) -> RunConfig:
        """Return the configuration of a run: squares on the web, tones and everything else on S3."""
        options = {"steps": 400, "checkpoint_every": 20, "eval_every": 100, **train}
        config = small_run.small_config(Path("DATA"), Path("RUNS"), name, **options)
        squares, tones = config.sources
        web, bucket = self.stores["web"].address, f"s3://{BUCKET}"
        squares = replace(
            squares,
            train_shards=f"{web}/data/squares/train-{{000000..000002}}.tar",
            eval_shards=f"{web}/data/squares/eval-000000.tar",
        )
        tones = replace(
            tones,
            train_shards=f"{bucket}/data/tones/train-*.tar",
            eval_shards=f"{bucket}/data/tones/eval-*.tar",
        )
        return replace(
            config,
            sources=[squares, tones],
            storage=replace(config.storage, path=f"{bucket}/runs"),
            tracking=replace(config.tracking, uri=self.mlflow.address),
        )

    def start(self, config: RunConfig) -> "subprocess.Popen[bytes]":
        """Start the job; its output goes to a file."""
        name = config.storage.run_name
        file = self.local / f"{name}.yaml"
        file.write_text(to_yaml(config))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {**CREDENTIALS, "AWS_ENDPOINT_URL": self.stores["s3"].address}
        # Each run has its own queue of records.
        environment["XDG_CACHE_HOME"] = str(self.local / "cache")
        with (self.local / f"{name}.txt").open("a") as screen:
            return subprocess.Popen(
                [sys.executable, "-u", "jobs/train_multimodal.py", "--config", str(file)],
                env=environment,
                stdout=screen,
                stderr=screen,
                start_new_session=True,
            )

    def screen(self, name: str) -> str:
        """Return the output of a run's job."""
        return (self.local / f"{name}.txt").read_text()

    def folder(self, name: str) -> Path:
        """Return a local copy of a run's folder, without checkpoints."""
        folder = self.local / "copies" / name
        folder.mkdir(parents=True, exist_ok=True)
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"runs/{name}/").get("Contents", [])
        for entry in listed:
            file = entry["Key"].removeprefix(f"runs/{name}/")
            if file and "/" not in file:
                self.s3.download_file(BUCKET, entry["Key"], str(folder / file))
        return folder

    def check_mlflow(self, name: str) -> None:
        """Check that MLflow has every logged step once, in order, and the run's files."""
        folder = self.folder(name)
        run_id = json.loads((folder / "result.json").read_text())["mlflow_run_id"]
        client = MlflowClient(self.server.address)
        history = client.get_metric_history(run_id, "train/loss")
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses = [(entry["step"], entry["train/loss"]) for entry in lines if "train/loss" in entry]
        # Steps that were taken again after a restart are there twice, with the same value.
        assert sorted({(point.step, point.value) for point in history}) == losses
        files = {file.path for file in client.list_artifacts(run_id)}
        assert files >= {"config.yaml", "result.json", "confusion_squares.png", "learning_curves.png"}
        assert client.get_run(run_id).info.status == "FINISHED"


@contextmanager
def remote_place(local: Path) -> Iterator[Place]:
    """Start the servers and their proxies, with the shards of the small run."""
    small_run.write_data(local / "data")
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeServer, directory=str(local)))
    Thread(target=web.serve_forever, daemon=True).start()
    with (
        served_s3(local, (local / "data" / "tones").glob("*.tar")) as (address, client),
        ServedMlflow(local) as server,
        FaultyProxy(address) as s3,
        FaultyProxy(f"http://127.0.0.1:{web.server_port}") as files,
        FaultyProxy(server.address) as mlflow,
    ):
        yield Place({"s3": s3, "web": files}, mlflow, server, client, local)
    web.shutdown()


Planned = tuple[str, Kind]
"""Name of a proxy ("s3", "web" or "mlflow") and what it does."""


def run_disturbed(
    place: Place, config: RunConfig, faults: list[Planned], random: np.random.Generator
) -> list[str]:
    """Run to the end while each fault lasts for a random time, after a random time; return what was hit, one line each.

    The first one begins with the first step: a start that finds no storage is for its user to repeat.
    """
    job = place.start(config)
    name = str(config.storage.run_name)
    while not STEPPING.search(place.screen(name)):
        assert job.poll() is None, place.screen(name)
        wait(0.2)
    lines = []
    for where, kind in faults:
        wait(random.uniform(0, MAX_SECONDS_BETWEEN_FAULTS))
        if job.poll() is not None:
            break
        proxy = place.mlflow if where == "mlflow" else place.stores[where]
        seconds = random.uniform(1, MAX_SECONDS_OF_FAULT)
        with proxy.faulty(kind) as fault:
            wait(seconds)
        lines.append(f"{where} {kind}: {seconds:.1f} s, {fault.hits} requests")
    assert job.wait() == 0, place.screen(name)
    return lines


def compare(place: Place, name: str, undisturbed: str) -> Report:
    """Return the differences of a run from an undisturbed one."""
    report = Report()
    result = json.loads((place.folder(name) / "result.json").read_text())
    assert result["exit"] == "completed", place.screen(name)
    report.restarts = result["restarts"]
    disturbed_run.compare(report, place.folder(name), place.folder(undisturbed))
    return report
