"""Tests of `make mlflow-server` with SQLite and with PostgreSQL, and eight processes that log at the same time."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import forked_processes
import pytest
from mlflow.tracking import MlflowClient
from served_mlflow import free_port, wait_until_healthy

from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_run import MlflowRun, new_identity

SCRIPT = Path(__file__).parents[2] / "cluster" / "mlflow_server.sh"
WRITERS = 8
STEPS = 25


@contextmanager
def shipped_server(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Run a copy of the script, which stores its records beside itself; yield its address and its log."""
    port, log = free_port(), folder / "log.txt"
    (folder / "cluster").mkdir()
    script = shutil.copy(SCRIPT, folder / "cluster")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("w") as output:
        server = subprocess.Popen(
            [script, "--workers=1"],
            env={**os.environ, "MLFLOW_PORT": str(port), "PATH": path, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}", log
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def postgres() -> Iterator[dict[str, str]]:
    """Start PostgreSQL with an empty database `mlflow`; yield the environment variables of its clients."""
    if not (shutil.which("initdb") and shutil.which("pg_ctl") and shutil.which("createdb")):
        pytest.skip("initdb, pg_ctl and createdb of PostgreSQL are not in PATH")
    # PostgreSQL does not run as root, and other users cannot enter pytest's folders. A socket's path must be short.
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if user:
        shutil.chown(folder, user)
    variables = {"PGHOST": str(folder), "PGPORT": str(free_port()), "PGUSER": "tester"}

    def run(*command: str) -> None:
        # The server that pg_ctl starts inherits its output and keeps it open, so that reading a pipe would never end.
        subprocess.run(
            command,
            env={**os.environ, **variables},
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    data = str(folder / "data")
    try:
        run("initdb", "--username=tester", "--auth=trust", "--no-sync", f"--pgdata={data}")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -p {variables['PGPORT']}"
        run("pg_ctl", "start", "--wait", "--timeout=300", f"--pgdata={data}", f"--options={options}")
        run("createdb", "mlflow")
        yield variables
    finally:
        run("pg_ctl", "stop", "--mode=immediate", f"--pgdata={data}")
        shutil.rmtree(folder)


def write(number: int, address: str, folder: Path) -> None:
    """Log in a process of its own until everything is delivered."""
    writer = BackgroundWriter(address, folder / f"{number}.sqlite")
    run = MlflowRun(
        writer, "shared", str(number), None, {"writer": str(number)}, {}, new_identity(), system_metrics=False
    )
    for step in range(STEPS):
        run.metrics(step, {"loss": step / 8, "writer": float(number)})
    run.text("name.txt", str(number))
    run.close("FINISHED")
    while writer.close():  # it gives up when the server, which eight processes write to, is slow
        writer = BackgroundWriter(address, folder / f"{number}.sqlite")


def check_everything_arrived(address: str) -> None:
    client = MlflowClient(address)
    [experiment] = client.search_experiments(filter_string="name = 'shared'")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name or "" for run in runs) == [str(number) for number in range(WRITERS)]
    for run in runs:
        assert (run.info.status, run.data.params) == ("FINISHED", {"writer": run.info.run_name})
        losses = client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in losses] == [(step, step / 8) for step in range(STEPS)]
        assert run.data.metrics["writer"] == float(run.info.run_name or "")
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["name.txt"]


def test_eight_processes_log_at_once_into_sqlite(tmp_path: Path) -> None:
    with shipped_server(tmp_path, {"PGHOST": str(tmp_path)}) as (address, log):
        forked_processes.call(write, (address, tmp_path), WRITERS)
        check_everything_arrived(address)
    assert log.read_text().startswith(
        f"MLflow at {address}, records in sqlite:///{tmp_path}/runs/mlflow.db\n"
    )


def test_eight_processes_log_at_once_into_postgresql(tmp_path: Path, postgres: dict[str, str]) -> None:
    with shipped_server(tmp_path, postgres) as (address, log):
        forked_processes.call(write, (address, tmp_path), WRITERS)
        check_everything_arrived(address)
    assert log.read_text().startswith(f"MLflow at {address}, records in postgresql+psycopg2:///mlflow\n")
    assert not (tmp_path / "runs" / "mlflow.db").exists()
