"""MLflow model: loaded and served with nothing installed but its own requirements."""

import urllib.error
from collections.abc import Iterator
from pathlib import Path

import bare_environment
import numpy as np
import pytest
import yaml
from mlflow_models import invoke, predict_with_pyfunc, rows_of, served
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
    """Environment variables that hide all packages but the requirements, such as Ray and DeepSpeed."""
    return bare_environment.environment_of_requirements(tmp_path_factory.mktemp("bare") / "hidden")


def test_pyfunc_predictions_equal_those_of_the_checkpoint(
    folder: Path, bare: dict[str, str], samples: list[list[Path]], expected: np.ndarray
) -> None:
    predictions = predict_with_pyfunc(folder, bare, samples, "both")
    np.testing.assert_allclose(
        [prediction["probabilities"] for prediction in predictions], expected, atol=1e-6
    )
    assert [prediction["name"] for prediction in predictions] == [str(sample[0]) for sample in samples]
    assert [int(prediction["label"]) for prediction in predictions] == expected.argmax(1).tolist()
    assert [prediction["probability"] for prediction in predictions] == pytest.approx(
        expected.max(1).tolist()
    )


@pytest.fixture
def address(folder: Path, bare: dict[str, str]) -> Iterator[str]:
    """URL of the `mlflow models serve` endpoint."""
    with served(folder, bare) as address:
        yield address


def test_the_server_predicts_files_in_base64(
    address: str, folder: Path, samples: list[list[Path]], expected: np.ndarray
) -> None:
    rows = rows_of(samples)
    predictions = invoke(address, {"dataframe_records": rows, "params": {"source": "both"}})
    np.testing.assert_allclose(
        [prediction["probabilities"] for prediction in predictions], expected, atol=1e-6
    )
    assert len(invoke(address, (folder / "serving_input_example.json").read_bytes())) == 1
    with pytest.raises(urllib.error.HTTPError) as error:
        invoke(address, {"dataframe_records": [{**rows[0], "name": "text.txt"}]})
    assert error.value.code == 400
    assert "text.txt: unsupported file type" in error.value.read().decode()


def test_the_folder_contains_code_and_weights_but_no_data_files(folder: Path, run: Path) -> None:
    assert perceiver_dist.load(folder / "data" / "perceiver").config == perceiver_dist.load(run).config
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert described["flavors"]["python_function"]["loader_module"] == "perceiver_dist.export.served_model"
    code = [file for file in (folder / "code").rglob("*") if file.is_file()]
    assert {file.suffix for file in code} == {".py"}
    assert (folder / "requirements.txt").read_text().split() == requirements()


def test_exactly_one_destination_is_required(run: Path, export: Export, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give either --out FOLDER or --register NAME@ALIAS"):
        export(["mlflow", "--model", run])
    with pytest.raises(UserError, match="give either --out FOLDER or --register NAME@ALIAS"):
        export(["mlflow", "--model", run, "--out", tmp_path / "out", "--register", "perceiver@champion"])


@pytest.mark.parametrize("text", ["perceiver", "@champion", "perceiver@", "a/b@c", "a@b:c"])
def test_a_registered_model_needs_a_name_and_an_alias(text: str) -> None:
    with pytest.raises(UserError, match="must be NAME@ALIAS"):
        parse_model_name(text)
