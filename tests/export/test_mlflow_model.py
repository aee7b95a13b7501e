"""MLflow loads and serves an exported model where nothing is installed but what the model asks for."""

import urllib.error
from collections.abc import Iterator
from pathlib import Path

import bare_environment
import numpy as np
import pytest
import yaml
from mlflow_models import ask, predict_with_pyfunc, rows_of, served
from models_to_export import Export

import perceiver_dist
from perceiver_dist.errors import UserError
from perceiver_dist.export.mlflow_model import export_mlflow, parse_model_name, requirements


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
    answers = predict_with_pyfunc(folder, bare, samples, "both")
    np.testing.assert_allclose([answer["probabilities"] for answer in answers], expected, atol=1e-6)
    assert [answer["name"] for answer in answers] == [str(sample[0]) for sample in samples]
    assert [int(answer["label"]) for answer in answers] == expected.argmax(1).tolist()
    assert [answer["probability"] for answer in answers] == pytest.approx(expected.max(1).tolist())


@pytest.fixture
def address(folder: Path, bare: dict[str, str]) -> Iterator[str]:
    """Where `mlflow models serve` listens."""
    with served(folder, bare) as address:
        yield address


def test_a_server_answers_files_in_base64(
    address: str, folder: Path, samples: list[list[Path]], expected: np.ndarray
) -> None:
    rows = rows_of(samples)
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
