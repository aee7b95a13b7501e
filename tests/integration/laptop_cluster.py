"""Start, inspect and stop the autoscaling cluster of cluster/laptop.yaml."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
import waiting

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8265"
METRICS = "http://127.0.0.1:8080/metrics"
_MAX_WAIT_SECONDS = 180
"""Generous, as it only ends a test that would wait forever: a cluster on an idle machine changes within a minute."""


@dataclass(frozen=True)
class LaptopCluster:
    """A running cluster.

    Attributes:
        process: `cluster/laptop.sh`, which runs the head, in a session of its own with its child processes.
        environment: Environment variables with which `ray job submit` finds the cluster.
    """

    process: "subprocess.Popen[bytes]"
    environment: Mapping[str, str]

    def submit(self, *command: str, upload: Path | None = None) -> "subprocess.Popen[str]":
        """Start `ray job submit -- COMMAND`; with `upload`, add `--working-dir .` and run it in that folder."""
        options = ["--working-dir", "."] if upload else []
        return subprocess.Popen(
            ["ray", "job", "submit", *options, "--", *command],
            cwd=upload,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def nodes(self) -> int:
        """Return the number of live nodes that the dashboard reports."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        answer = requests.get(
            f"{ADDRESS}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        listed = answer.json()["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in listed)

    def kill_a_node(self) -> None:
        """Kill one node other than the head, with all its processes."""
        victim = next(
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "raylet"
            and "--head" not in process.info["cmdline"]
            and self._is_ours(process)
        )
        for process in [*victim.children(recursive=True), victim]:
            process.kill()

    def _is_ours(self, process: psutil.Process) -> bool:
        return process.environ().get("RAY_AUTH_TOKEN_PATH") == self.environment["RAY_AUTH_TOKEN_PATH"]

    def stop(self) -> None:
        """Kill all processes of the cluster."""
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and self._is_ours(process):
                    process.kill()
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        self.process.wait()


def changed_copy(folder: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """Copy the project, replace a text in some files, and add large files that an upload must leave out."""
    copy = folder / "changed"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "runs")
    )
    for file, (old, new) in changes.items():
        text = (copy / file).read_text()
        assert text.count(old) == 1, f"{file} must contain {old} exactly once"
        (copy / file).write_text(text.replace(old, new))
    for excluded in (".git", ".venv", "runs"):
        (copy / excluded).mkdir()
        (copy / excluded / "large").touch()
        os.truncate(copy / excluded / "large", 2**30)  # a sparse file: takes no disk space
    return copy


@contextmanager
def laptop_cluster(folder: Path, **environment: str) -> Iterator[LaptopCluster]:
    """Start the cluster with a new token; `environment` is added to the head's environment variables.

    It runs in a folder like that of the container image: with the jobs, but without the packages, which are installed.
    """
    for part in ("cluster", "jobs"):
        shutil.copytree(ROOT / part, folder / "head" / part)
    token = folder / "auth_token"
    token.write_text(secrets.token_hex(32))
    shared = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    with (folder / "cluster.txt").open("w") as output:
        process = subprocess.Popen(
            ["cluster/laptop.sh"],
            cwd=folder / "head",
            env={**shared, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    cluster = LaptopCluster(process, {**shared, "RAY_ADDRESS": ADDRESS})
    try:
        wait_until(lambda: process.poll() is not None or _answers(cluster))
        assert process.poll() is None, (folder / "cluster.txt").read_text()
        yield cluster
    finally:
        cluster.stop()


def wait_until(condition: Callable[[], object]) -> None:
    """Return as soon as `condition()` is true; fail after `_MAX_WAIT_SECONDS`."""
    waiting.wait_until(condition, _MAX_WAIT_SECONDS)


def _answers(cluster: LaptopCluster) -> bool:
    try:
        return cluster.nodes() > 0
    except (requests.RequestException, KeyError, TypeError):
        return False


def stop_job(cluster: LaptopCluster, job: str) -> None:
    """Run `ray job stop` for the job with this submission id."""
    subprocess.run(
        ["ray", "job", "stop", job], env=dict(cluster.environment), check=True, capture_output=True
    )
