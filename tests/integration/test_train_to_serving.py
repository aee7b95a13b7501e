"""From training to serving with the commands that people type: all forms of a model say the same of the same files."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bare_environment import environment_of_requirements
from mlflow_models import ask, predict_with_pyfunc, rows_of, served

import perceiver_dist
from perceiver_dist.inference.sample_files import read_files

STEPS, CLASSES, FILES = 20, 9, 5
SOURCE = ["--source", "clips"]


def job(name: str, *options: object) -> str:
    """Run one of the jobs as a person would, and return what it prints."""
    command = [sys.executable, f"jobs/{name}.py", *map(str, options)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def labels_in(shard: Path) -> dict[str, int]:
    """Labels of the samples of a shard, by key."""
    with tarfile.open(shard) as members:
        return {
            member.name.removesuffix(".cls"): int(members.extractfile(member).read())  # type: ignore[union-attr]
            for member in members
            if member.name.endswith(".cls")
        }


def test_every_form_of_a_trained_model_says_the_same(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="run by `make test-onnx`")
    storage = ["--storage.path", tmp_path / "runs", "--storage.run_name", "first"]
    job("train_multimodal", *storage, "--train.steps", STEPS, "--train.eval_every", STEPS)
    run = tmp_path / "runs" / "first"
    trained = json.loads((run / "result.json").read_text())["metrics"]

    job("evaluate", "--model", run, "--attention", 1)
    report = json.loads((run / f"evaluation-{STEPS:08d}" / "report.json").read_text())
    assert report["metrics"] == pytest.approx(trained, abs=1e-6)

    held_out = tmp_path / "runs" / "demo" / "sights_and_sounds"
    shards = f"{held_out}/eval-*.tar"
    job(
        "predict",
        "--model",
        run,
        *SOURCE,
        "--shards",
        shards,
        "--out",
        tmp_path / "answers",
        "--top",
        CLASSES,
    )
    rows = pq.read_table(tmp_path / "answers").to_pylist()
    labels = {
        (str(shard), key): label
        for shard in held_out.glob("eval-*.tar")
        for key, label in labels_in(shard).items()
    }
    right = [row["classes"][0] == labels.pop((row["shard"], row["key"])) for row in rows]
    assert not labels
    assert np.mean(right) == pytest.approx(trained["clips/accuracy"])

    with tarfile.open(held_out / "eval-000000.tar") as members:
        members.extractall(tmp_path / "clips", filter="data")
    files = [tmp_path / "clips" / f"{row['key']}.mp4" for row in rows[:FILES]]
    model = perceiver_dist.load(run)
    expected = np.stack([prediction.probabilities for prediction in model.predict(files)])
    assert expected.std() > 0.01
    answers = {
        "shards": [
            [p for _, p in sorted(zip(row["classes"], row["probabilities"], strict=True))]
            for row in rows[:FILES]
        ]
    }

    job("export", "folder", "--model", run, "--out", tmp_path / "exported")
    exported = perceiver_dist.load(tmp_path / "exported")
    answers["safetensors"] = [prediction.probabilities for prediction in exported.predict(files)]

    clips = exported.source("clips")
    arrays, present = exported.stack([exported.decode(read_files(file), clips) for file in files], clips)
    job("export", "torch", "--model", run, "--out", tmp_path / "clips.pt2", *SOURCE)
    answers["torch.export"] = torch.export.load(tmp_path / "clips.pt2").module()(arrays, present).detach()

    job("export", "onnx", "--model", run, "--out", tmp_path / "clips.onnx", *SOURCE)
    session = runtime.InferenceSession(str(tmp_path / "clips.onnx"), providers=["CPUExecutionProvider"])
    feed = {name: array.numpy() for name, array in arrays.items()}
    feed |= {f"{name}_present": mask.numpy() for name, mask in present.items()}
    [answers["ONNX"]] = session.run(["probabilities"], feed)

    job("export", "mlflow", "--model", run, "--out", tmp_path / "served")
    bare = environment_of_requirements(tmp_path / "hidden")
    samples = [[file] for file in files]
    found = predict_with_pyfunc(tmp_path / "served", bare, samples, "clips")
    answers["MLflow"] = [answer["probabilities"] for answer in found]
    with served(tmp_path / "served", bare) as address:
        found = ask(address, {"dataframe_records": rows_of(samples), "params": {"source": "clips"}})
    answers["served"] = [answer["probabilities"] for answer in found]

    for form, probabilities in answers.items():
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5, err_msg=form)
        sys.stdout.write(f"\n{form}: off by at most {np.abs(np.asarray(probabilities) - expected).max():.1e}")
