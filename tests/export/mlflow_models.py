"""Clients of an exported MLflow model: `mlflow.pyfunc`, and HTTP requests to `mlflow models serve`."""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from served_mlflow import free_port, wait_until_healthy

_PREDICT = """
import json, sys
import mlflow.pyfunc, pandas
folder, source, *files = sys.argv[1:]
samples = [(number, file) for number, one in enumerate(files) for file in one.split("|")]
rows = [{"name": file, "content": open(file, "rb").read(), "sample": str(number)} for number, file in samples]
predictions = mlflow.pyfunc.load_model(folder).predict(pandas.DataFrame(rows), params={"source": source})
import perceiver_dist
print(json.dumps({"code": perceiver_dist.__file__, "predictions": predictions.to_dict("records")}))
"""


def predict_with_pyfunc(
    folder: Path, environment: Mapping[str, str], samples: Sequence[Sequence[Path]], source: str
) -> list[dict[str, Any]]:
    """Predict in a new process, which must import this project's code from the model."""
    files = ["|".join(map(str, sample)) for sample in samples]
    command = [sys.executable, "-c", _PREDICT, str(folder), source, *files]
    finished = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["code"].startswith(str(folder))
    predictions: list[dict[str, Any]] = found["predictions"]
    return predictions


@contextmanager
def served(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run `mlflow models serve`, and yield the URL of its endpoint."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    server = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", str(port)],
        env={**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def rows_of(samples: Sequence[Sequence[Path]]) -> list[dict[str, str]]:
    """Return the records of a request for samples, each with one or several files."""
    return [
        {"name": file.name, "content": base64.b64encode(file.read_bytes()).decode(), "sample": str(number)}
        for number, sample in enumerate(samples)
        for file in sample
    ]


def invoke(url: str, request: Any) -> Any:
    """Post a request to the endpoint, and return its predictions."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    post = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 # loopback
    with urllib.request.urlopen(post, timeout=60) as response:  # noqa: S310 # loopback
        return json.load(response)["predictions"]
