"""MLflow loads and serves an exported model where nothing is installed but what the model asks for."""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bare_environment
import numpy as np
import pytest
import yaml
from models_to_export import Export
from served_mlflow import free_port, wait_until_healthy

import perceiver_dist
from perceiver_dist.errors import UserError
from perceiver_dist.export.mlflow_model import export_mlflow, parse_model_name, requirements

PREDICT = """
import json, pathlib, sys
import mlflow.pyfunc, pandas
folder, *files = sys.argv[1:]
model = mlflow.pyfunc.load_model(folder)
rows = [{"name": file, "content": open(file, "rb").read(), "sample": pathlib.Path(file).stem} for file in files]
answers = model.predict(pandas.DataFrame(rows), params={"source": "both"})
import perceiver_dist
print(json.dumps({"code": perceiver_dist.__file__, "answers": answers.to_dict("records")}))
"""


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mlflow") / "model"
    export_mlflow(str(run), str(out))
    return out


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment without Ray, DeepSpeed and all else that the model does not ask for."""
    return bare_environment.environment_of_requirements(tmp_path_factory.mktemp("bare") / "hidden")


def test_pyfunc_predicts_what_the_checkpoint_does(
    folder: Path, bare: dict[str, str], samples: list[list[Path]], expected: np.ndarray
) -> None:
    files = [str(file) for sample in samples for file in sample]
    command = [sys.executable, "-c", PREDICT, str(folder), *files]
    finished = subprocess.run(command, env=bare, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["code"].startswith(str(folder))
    answers = found["answers"]
    np.testing.assert_allclose([answer["probabilities"] for answer in answers], expected, atol=1e-6)
    assert [answer["name"] for answer in answers] == [str(sample[0]) for sample in samples]
    assert [int(answer["label"]) for answer in answers] == expected.argmax(1).tolist()
    assert [answer["probability"] for answer in answers] == pytest.approx(expected.max(1).tolist())


@pytest.fixture
def address(folder: Path, bare: dict[str, str]) -> Iterator[str]:
    """Where `mlflow models serve` listens."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    environment = {**bare, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    server = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", str(port)],
        env=environment,
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


def ask(address: str, request: Any) -> Any:
    """What the server answers."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310 # loopback
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310 # loopback
        return json.load(answer)["predictions"]


def test_a_server_answers_files_in_base64(
    address: str, folder: Path, samples: list[list[Path]], expected: np.ndarray
) -> None:
    rows = [
        {"name": file.name, "content": base64.b64encode(file.read_bytes()).decode(), "sample": str(number)}
        for number, sample in enumerate(samples)
        for file in sample
    ]
    answers = ask(address, {"dataframe_records": rows, "params": {"source": "both"}})
    np.testing.assert_allclose([answer["probabilities"] for answer in answers], expected, atol=1e-6)
    assert len(ask(address, (folder / "serving_input_example.json").read_bytes())) == 1
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, {"dataframe_records": [{**rows[0], "name": "text.txt"}]})
    assert refused.value.code == 400
    assert "text.txt: no kind of file known here" in refused.value.read().decode()


def test_the_folder_holds_code_and_weights_and_no_data(folder: Path, run: Path) -> None:
    assert perceiver_dist.load(folder / "data" / "perceiver").config == perceiver_dist.load(run).config
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert described["flavors"]["python_function"]["loader_module"] == "perceiver_dist.export.served_model"
    code = [file for file in (folder / "code").rglob("*") if file.is_file()]
    assert {file.suffix for file in code} == {".py"}
    assert (folder / "requirements.txt").read_text().split() == requirements()


def test_where_it_goes_has_to_be_said_once(run: Path, export: Export, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give either --out FOLDER or --register NAME@ALIAS"):
        export(["mlflow", "--model", run])
    with pytest.raises(UserError, match="give either --out FOLDER or --register NAME@ALIAS"):
        export(["mlflow", "--model", run, "--out", tmp_path / "out", "--register", "perceiver@champion"])


@pytest.mark.parametrize("text", ["perceiver", "@champion", "perceiver@", "a/b@c", "a@b:c"])
def test_a_registered_model_has_a_name_and_an_alias(text: str) -> None:
    with pytest.raises(UserError, match="must be NAME@ALIAS"):
        parse_model_name(text)
