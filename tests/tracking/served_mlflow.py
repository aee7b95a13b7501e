"""A real `mlflow server` that can be paused, killed and restarted at the same address."""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server responds; fail if its process ends."""
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 # a loopback address
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "the server ended before it was healthy"
            threading.Event().wait(0.1)


ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Five processes for evaluations of language models, which would take five times the CPU time of the server itself.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Environment variables of a server, as in `cluster/mlflow_server.sh`."""


class ServedMlflow:
    """MLflow server on loopback with a SQLite store; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self.address = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server, with the records of earlier starts."""
        self._server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers=1", "--host=127.0.0.1"),
                f"--port={self._port}",
                f"--backend-store-uri=sqlite:///{self._folder}/served.db",
                f"--artifacts-destination={self._folder}/served_files",
            ],
            cwd=self._folder,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until_healthy(self.address, self._server)

    def pause(self) -> None:
        """Keep accepting connections, without a response to any."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Respond again, after `pause`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server; its port then refuses connections."""
        self._signal(signal.SIGKILL)
        if self._server is not None:
            self._server.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._server is not None and self._server.poll() is None:
            os.killpg(self._server.pid, number)
