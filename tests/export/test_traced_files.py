"""torch.export and ONNX files compute the same as the model, for any batch size and any missing modalities."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import models_to_export as models
import numpy as np
import pytest
import torch
from models_to_export import Export

import perceiver_dist
from perceiver_dist.errors import InternalError, UserError
from perceiver_dist.export import onnx_file
from perceiver_dist.export.one_source import OneSource, check_outputs, random_inputs
from perceiver_dist.inference.sample_files import read_files
from perceiver_dist.inference.trained_model import TrainedModel

Inputs = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def inputs_of(model: TrainedModel, source: str, samples: list[list[Path]]) -> Inputs:
    """Return the model's inputs for samples in files."""
    chosen = model.source(source)
    return model.stack([model.decode(read_files(files), chosen) for files in samples], chosen)


def test_torch_loads_and_runs_a_torch_export_file(
    run: Path, samples: list[list[Path]], expected: np.ndarray, export: Export, tmp_path: Path
) -> None:
    export(["torch", "--model", run, "--out", tmp_path / "model.pt2", "--source", "both"])
    names = {"classes.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=names).module()
    arrays, present = inputs_of(perceiver_dist.load(run), "both", samples)
    np.testing.assert_allclose(program(arrays, present).detach().numpy(), expected, atol=1e-5)
    single = program(*({name: rows[:1] for name, rows in part.items()} for part in (arrays, present)))
    np.testing.assert_allclose(single.detach().numpy(), expected[:1], atol=1e-5)
    assert json.loads(names["classes.json"]) == ["0", "1", "2", "3", "4"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def feed(inputs: Inputs) -> dict[str, Any]:
    """Return the inputs by their names in an ONNX file."""
    arrays, present = inputs
    return {name: array.numpy() for name, array in arrays.items()} | {
        f"{name}_present": mask.numpy() for name, mask in present.items()
    }


def test_onnxruntime_predictions_equal_those_of_the_checkpoint(
    run: Path, samples: list[list[Path]], expected: np.ndarray, export: Export, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="run by `make test-onnx`")
    export(["onnx", "--model", run, "--out", tmp_path / "model.onnx", "--source", "both"])
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = inputs_of(perceiver_dist.load(run), "both", samples)
    np.testing.assert_allclose(session.run(["probabilities"], feed(inputs))[0], expected, atol=1e-5)
    assert {entry.name: entry.type for entry in session.get_inputs()} == {
        "image": "tensor(uint8)",
        "audio": "tensor(int16)",
        "image_present": "tensor(bool)",
        "audio_present": "tensor(bool)",
    }
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["0", "1", "2", "3", "4"]


def test_every_modality_and_option_can_be_traced(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="run by `make test-onnx`")
    exported = models.write_exported(tmp_path / "exported", models.all_modalities())
    options = [
        "--model",
        exported,
        "--out",
        tmp_path / "model.onnx",
        "--source",
        "all_at_once",
        "--output",
        "logits",
    ]
    export(["onnx", *options])
    model = perceiver_dist.load(exported)
    source = model.source("all_at_once")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = random_inputs(model, source, 7)
    with torch.no_grad():
        logits = model.model(*inputs, source.name).numpy()
    np.testing.assert_allclose(session.run(["logits"], feed(inputs))[0], logits, atol=1e-5)
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="an ONNX file holds less than"):
        export(["onnx", *options[:3], tmp_path / "large.onnx", *options[4:]])


def test_a_missing_package_names_the_extra_to_install(
    run: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(
        UserError, match=r"ONNX export needs no_such_package, not installed: run .*\[export\]"
    ):
        export(["onnx", "--model", run, "--out", tmp_path / "model.onnx"])


def test_a_file_with_other_outputs_is_rejected(run: Path) -> None:
    model = perceiver_dist.load(run)
    source = model.source("both")
    same = OneSource(model.model, source, "probabilities").eval()

    def exported(inputs: Inputs, error: float = 0.0) -> np.ndarray:
        outputs: np.ndarray = same(*inputs).detach().numpy() + error
        return outputs

    assert check_outputs(model, source, "probabilities", exported) == 0
    for error in (2e-4, np.nan):
        with pytest.raises(InternalError, match=r"differ from the model's by up to .*nothing was written"):
            check_outputs(model, source, "probabilities", partial(exported, error=error))


def test_an_ambiguous_source_and_an_existing_file_are_rejected(
    run: Path, export: Export, tmp_path: Path
) -> None:
    (tmp_path / "taken.pt2").write_text("")
    with pytest.raises(UserError, match="source is not set and several match; choose one of pictures, both"):
        export(["torch", "--model", run, "--out", tmp_path / "model.pt2"])
    with pytest.raises(UserError, match="which already exists; choose a new file"):
        export(["torch", "--model", run, "--out", tmp_path / "taken.pt2", "--source", "both"])
