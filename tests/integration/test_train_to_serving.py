"""From training to serving with the documented commands: every exported form gives the same predictions."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bare_environment import environment_of_requirements
from mlflow_models import invoke, predict_with_pyfunc, rows_of, served

import perceiver_dist
from perceiver_dist.inference.sample_files import read_files
from perceiver_dist.inference.trained_model import TrainedModel

runtime = pytest.importorskip("onnxruntime", reason="run by `make test-onnx`")

STEPS, CLASSES, FILES = 20, 9, 5


def job(name: str, *options: object) -> None:
    """Run one of the jobs in a process of its own; it has to succeed."""
    command = [sys.executable, f"jobs/{name}.py", *map(str, options)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def predicted_shards(run: Path, held_out: Path, out: Path) -> list[dict[str, Any]]:
    """Return the rows that `jobs/predict.py` writes for the held-out clips."""
    shards = f"{held_out}/eval-*.tar"
    job("predict", "--model", run, "--source", "clips", "--shards", shards, "--out", out, "--top", CLASSES)
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def accuracy(rows: list[dict[str, Any]], held_out: Path) -> float:
    """Return the fraction of predictions that equal the shards' labels; every sample has to occur exactly once."""
    labels = {}
    for shard in held_out.glob("eval-*.tar"):
        with tarfile.open(shard) as members:
            for member in members:
                key, _, field = member.name.partition(".")
                if field == "cls" and (file := members.extractfile(member)) is not None:
                    labels[str(shard), key] = int(file.read())
    right = [row["classes"][0] == labels.pop((row["shard"], row["key"])) for row in rows]
    assert not labels
    return float(np.mean(right))


def in_order(row: dict[str, Any]) -> list[float]:
    """Return the probabilities of a prediction in the order of class numbers."""
    return [probability for _, probability in sorted(zip(row["classes"], row["probabilities"], strict=True))]


def predictions(run: Path, files: list[Path], folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the name of each exported form and its (files, classes) probabilities."""
    job("export", "folder", "--model", run, "--out", folder / "exported")
    exported = perceiver_dist.load(folder / "exported")
    yield "safetensors", [prediction.probabilities for prediction in exported.predict(files)]
    yield from traced_predictions(run, files, folder, exported)
    job("export", "mlflow", "--model", run, "--out", folder / "mlflow")
    bare = environment_of_requirements(folder / "hidden")
    samples = [[file] for file in files]
    found = predict_with_pyfunc(folder / "mlflow", bare, samples, "clips")
    yield "MLflow", [answer["probabilities"] for answer in found]
    with served(folder / "mlflow", bare) as address:
        found = invoke(address, {"dataframe_records": rows_of(samples), "params": {"source": "clips"}})
    yield "served by MLflow", [answer["probabilities"] for answer in found]


def traced_predictions(
    run: Path, files: list[Path], folder: Path, model: TrainedModel
) -> Iterator[tuple[str, Any]]:
    """Yield the probabilities from the `torch.export` and ONNX files, for files decoded by `model`."""
    for form, name in (("torch", "clips.pt2"), ("onnx", "clips.onnx")):
        job("export", form, "--model", run, "--out", folder / name, "--source", "clips")
    clips = model.source("clips")
    arrays, present = model.stack([model.decode(read_files(file), clips) for file in files], clips)
    yield "torch.export", torch.export.load(folder / "clips.pt2").module()(arrays, present).detach()
    session = runtime.InferenceSession(str(folder / "clips.onnx"), providers=["CPUExecutionProvider"])
    feed = {name: array.numpy() for name, array in arrays.items()}
    feed |= {f"{name}_present": mask.numpy() for name, mask in present.items()}
    yield "ONNX", session.run(["probabilities"], feed)[0]


def test_train_evaluate_predict_export_serve(tmp_path: Path) -> None:
    storage = ("--storage.path", tmp_path / "runs", "--storage.run_name", "first")
    job("train_multimodal", *storage, "--train.steps", STEPS)
    run, held_out = tmp_path / "runs" / "first", tmp_path / "runs" / "demo" / "sights_and_sounds"
    trained = json.loads((run / "result.json").read_text())["metrics"]

    job("evaluate", "--model", run, "--attention", 1)
    report = json.loads((run / f"evaluation-{STEPS:08d}" / "report.json").read_text())
    assert report["metrics"] == pytest.approx(trained, abs=1e-6)

    rows = predicted_shards(run, held_out, tmp_path / "answers")
    assert accuracy(rows, held_out) == pytest.approx(trained["clips/accuracy"])

    with tarfile.open(held_out / "eval-000000.tar") as members:
        members.extractall(tmp_path / "clips", filter="data")
    files = [tmp_path / "clips" / f"{row['key']}.mp4" for row in rows[:FILES]]
    of_checkpoint = perceiver_dist.load(run).predict(files)
    expected = np.stack([prediction.probabilities for prediction in of_checkpoint])
    assert expected.std() > 0.01  # or the comparison would show nothing
    forms = {"shards": [in_order(row) for row in rows[:FILES]], **dict(predictions(run, files, tmp_path))}
    for form, found in forms.items():
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=form)
        sys.stdout.write(f"\n{form}: maximum difference {np.abs(np.asarray(found) - expected).max():.1e}")
