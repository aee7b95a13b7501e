"""The cluster of cluster/laptop.yaml for tests: started, looked at, and all of it ended."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import requests

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8265"
METRICS = "http://127.0.0.1:8080/metrics"
_MAX_WAIT_SECONDS = 180


@dataclass(frozen=True)
class LaptopCluster:
    """A running cluster.

    Attributes:
        process: The head's `ray start`, in a session of its own with everything it started.
        environment: Of a terminal in which `ray job submit` finds the cluster.
    """

    process: "subprocess.Popen[bytes]"
    environment: Mapping[str, str]

    def submit(self, *command: str, upload: Path | None = None) -> "subprocess.Popen[str]":
        """Start `ray job submit -- COMMAND`, with `--working-dir .` in a folder to be uploaded."""
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
        """Return how many nodes are alive, as the dashboard tells it."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        answer = requests.get(
            f"{ADDRESS}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        listed = answer.json()["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in listed)

    def take_a_node_away(self) -> None:
        """Kill one node that is not the head, with everything that runs on it."""
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

    def end(self) -> None:
        """Kill everything that the cluster started."""
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and self._is_ours(process):
                    process.kill()
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        self.process.wait()


def changed_copy(folder: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """Copy the project with a text replaced in some files, and with what must not be uploaded beside it."""
    copy = folder / "changed"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "runs")
    )
    for file, (old, new) in changes.items():
        text = (copy / file).read_text()
        assert text.count(old) == 1, f"{file} is to have {old} once"
        (copy / file).write_text(text.replace(old, new))
    for left_behind in (".git", ".venv", "runs"):
        (copy / left_behind).mkdir()
        (copy / left_behind / "large").touch()
        os.truncate(copy / left_behind / "large", 2**30)
    return copy


@contextmanager
def laptop_cluster(folder: Path, **environment: str) -> Iterator[LaptopCluster]:
    """Start the cluster with a token of its own; `environment` is added to its head's.

    It runs in a folder that has what the image has: jobs, and not the packages, which are installed.
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
        cluster.end()


def wait_until(so: Callable[[], Any]) -> None:
    """Return as soon as something is so."""
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while not so():
        assert time.monotonic() < deadline, "it never came"
        Event().wait(0.2)


def _answers(cluster: LaptopCluster) -> bool:
    try:
        return cluster.nodes() > 0
    except (requests.RequestException, KeyError, TypeError):
        return False


def stop_job(cluster: LaptopCluster, job: str) -> None:
    """Run `ray job stop`."""
    subprocess.run(
        ["ray", "job", "stop", job], env=dict(cluster.environment), check=True, capture_output=True
    )
