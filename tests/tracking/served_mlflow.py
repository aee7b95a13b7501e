"""A real `mlflow server` that can be stopped, killed and started again at the same address."""

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
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(address: str, server: subprocess.Popen[bytes]) -> None:
    """Return as soon as the server answers; fail if it ends instead."""
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 # a loopback address
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "the server ended instead of starting"
            threading.Event().wait(0.1)


class ServedMlflow:
    """MLflow on loopback, with a SQLite file behind it; use it as a context manager."""

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
        """Serve, with what was kept before."""
        self._server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers=1", "--host=127.0.0.1"),
                f"--port={self._port}",
                f"--backend-store-uri=sqlite:///{self._folder}/served.db",
                f"--artifacts-destination={self._folder}/served_files",
            ],
            cwd=self._folder,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until_healthy(self.address, self._server)

    def stop(self) -> None:
        """Let connections in and answer none."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again, after `stop`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End without a last word; nobody listens afterwards."""
        self._signal(signal.SIGKILL)
        if self._server is not None:
            self._server.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._server is not None and self._server.poll() is None:
            os.killpg(self._server.pid, number)
