"""Inference with a trained run: evaluation, prediction of shards and files, export, and resume after a kill."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import small_run
import torch
import trained_small_run
from rich.console import Console

import perceiver_dist
from perceiver_dist.config.run_config import TrackingConfig
from perceiver_dist.errors import UserError
from perceiver_dist.export.model_folder import export_folder
from perceiver_dist.export.torch_file import export_torch
from perceiver_dist.inference.evaluation_report import write_report
from perceiver_dist.inference.evaluation_tracking import record_evaluation
from perceiver_dist.inference.inference_options import EvaluationOptions, PredictionOptions
from perceiver_dist.inference.model_evaluation import ModelEvaluation, evaluate_model
from perceiver_dist.inference.sample_files import read_files
from perceiver_dist.inference.shard_prediction import predict_shards
from pipelines.shards.shard_writer import Sample, write_shards

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def result(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    request.getfixturevalue("ray_cluster")
    return trained_small_run.train(folder)


@pytest.fixture(scope="module")
def run(folder: Path, result: dict[str, Any]) -> str:
    assert result["exit"] == "completed"
    return str(folder / "runs" / "small")


@pytest.fixture(scope="module")
def evaluation(run: str) -> ModelEvaluation:
    return evaluate_model(EvaluationOptions(model=run), Console(file=StringIO()))


def test_evaluation_reproduces_the_metrics_of_training(
    result: dict[str, Any], evaluation: ModelEvaluation
) -> None:
    found, expected = evaluation.metrics, result["metrics"]
    assert set(found) == set(expected)
    exact = [name for name in expected if "accuracy" in name or "samples" in name]
    assert [found[name] for name in exact] == [expected[name] for name in exact]
    assert found == pytest.approx(expected, abs=1e-6)
    samples = {evaluated.source.name: evaluated.samples for evaluated in evaluation.sources}
    assert samples == {"squares": 21, "clips": 10}


def test_the_report_is_in_the_run_folder_and_in_mlflow(
    folder: Path, run: str, result: dict[str, Any], evaluation: ModelEvaluation
) -> None:
    run_id = record_evaluation(evaluation, write_report(evaluation, attention=2))
    out = Path(run) / "evaluation-00000006"
    report = json.loads((out / "report.json").read_text())
    assert report["metrics"] == evaluation.metrics
    [first, *_] = report["sources"]["clips"]["classes"]
    assert (first["class"], first["samples"]) == ("first", 4)
    assert "| clips  audio only |" in (out / "report.md").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    recorded = client.get_run(run_id)
    assert recorded.info.run_name == "evaluation of small"
    assert recorded.data.tags["mlflow.parentRunId"] == result["mlflow_run_id"]
    assert (
        recorded.data.metrics["clips/accuracy_audio_only"] == result["metrics"]["clips/accuracy_audio_only"]
    )
    files = {entry.path for entry in client.list_artifacts(run_id)}
    per_source = ("confusion_{0}.png", "attention_{0}_00.png", "attention_{0}_01.png")
    figures = {name.format(source) for name in per_source for source in ("squares", "clips")}
    assert files == {"report.json", "report.md"} | figures
    assert {path.name for path in out.iterdir()} >= files


def test_an_evaluation_reports_a_missing_mlflow_database(evaluation: ModelEvaluation, tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    stored = evaluation.model.stored
    config = replace(stored.config, tracking=TrackingConfig(uri=f"sqlite:///{missing}"))
    evaluation.model.stored = replace(stored, config=config)
    assert record_evaluation(evaluation, []) == f"none: the training's {missing} no longer exists"
    evaluation.model.stored = stored
    assert not missing.exists()


def test_views_of_images_are_rejected(run: str) -> None:
    with pytest.raises(UserError, match="--views is 2, but source 'squares' has image: views are windows"):
        evaluate_model(EvaluationOptions(model=run, views=2), Console(file=StringIO()))


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder of predictions."""
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def test_shards_and_files_get_the_same_predictions(folder: Path, run: str, tmp_path: Path) -> None:
    options = PredictionOptions(
        model=run,
        source="clips",
        shards=f"{folder}/data/clips/eval-*.tar",
        out=str(tmp_path / "out"),
        batch=3,
    )
    screen = StringIO()
    predicted = predict_shards(options, Console(file=screen))
    assert (predicted.samples, predicted.resumed, predicted.bad) == (10, 0, 0)
    rows = rows_of(tmp_path / "out")
    files = []
    for row in rows:
        with tarfile.open(row["shard"]) as shard:
            shard.extract(f"{row['key']}.mp4", tmp_path, filter="data")
        files.append(tmp_path / f"{row['key']}.mp4")
    assert [file.stem for file in files] == [f"{number:04d}" for number in range(10)]
    for row, prediction in zip(rows, perceiver_dist.load(run).predict(files), strict=True):
        answers = prediction.top(5)
        assert row["labels"] == [answer.label for answer in answers]
        assert row["probabilities"] == pytest.approx([answer.probability for answer in answers], abs=1e-6)
        assert (row["modalities"], row["error"]) == (["audio", "video"], None)
    with pytest.raises(UserError, match="which holds predictions with top 3, now it is 1"):
        predict_shards(replace(options, top=1), Console(file=screen))


def test_exported_models_predict_as_the_run_does(folder: Path, run: str, tmp_path: Path) -> None:
    """For the folder and torch.export; MLflow and ONNX are tested in tests/export."""
    with tarfile.open(folder / "data" / "clips" / "eval-000000.tar") as shard:
        shard.extractall(tmp_path / "clips", filter="data")
    files = sorted((tmp_path / "clips").glob("*.mp4"))
    expected = [prediction.probabilities for prediction in perceiver_dist.load(run).predict(files)]
    export_folder(run, str(tmp_path / "exported"))
    exported = perceiver_dist.load(tmp_path / "exported")
    answers = [prediction.probabilities for prediction in exported.predict(files)]
    np.testing.assert_array_equal(answers, expected)
    clips = exported.source("clips")
    export_torch(run, str(tmp_path / "clips.pt2"), "clips")
    inputs = exported.stack([exported.decode(read_files(file), clips) for file in files], clips)
    answers = torch.export.load(tmp_path / "clips.pt2").module()(*inputs).detach()
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_the_job_predicts_files_and_reports_those_that_it_cannot_read(run: str, tmp_path: Path) -> None:
    (tmp_path / "square.png").write_bytes(small_run.square_png(1, np.random.default_rng(0)))
    (tmp_path / "bad.wav").write_bytes(b"x")
    names = ["square.png", "bad.wav", "missing.mp4"]
    job = subprocess.run(
        [
            sys.executable,
            "jobs/predict.py",
            "--model",
            run,
            "--files",
            *(str(tmp_path / name) for name in names),
        ],
        capture_output=True,
        text=True,
    )
    assert job.returncode == 2
    assert "square.png" in job.stdout.splitlines()[1]
    assert len(job.stdout.splitlines()) == 1 + small_run.CLASSES
    errors = job.stderr.splitlines()
    assert [error.partition(f"{tmp_path}/")[2].partition(":")[0] for error in errors] == names[1:]


def write_squares(folder: Path, count: int) -> None:
    """Write shards of `count` unlabelled squares: 1,000 distinct ones, repeated."""
    random = np.random.default_rng(2)
    images = [small_run.square_png(number % small_run.CLASSES, random) for number in range(1000)]
    samples: list[Sample] = [
        {"__key__": f"{number:06d}", "png": images[number % len(images)]} for number in range(count)
    ]
    write_shards(samples, folder, "squares", samples_per_shard=10_000)


def kill_at_the_first_part(arguments: list[str], out: Path) -> None:
    """Start the job, and kill it with its child processes once it has written the first part."""
    job = subprocess.Popen([sys.executable, "jobs/predict.py", *arguments], start_new_session=True)
    while not (out / "part-00000000.parquet").exists():
        assert job.poll() is None, "the job ended before it was killed"
        threading.Event().wait(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


@pytest.mark.parametrize(
    ("samples", "batch", "samples_per_part"),
    [(1500, 8, 8), pytest.param(100_000, 256, 4096, marks=pytest.mark.long)],
)
def test_a_killed_prediction_resumes_and_has_every_key_once(
    run: str, tmp_path: Path, samples: int, batch: int, samples_per_part: int
) -> None:
    write_squares(tmp_path / "shards", samples)
    options: dict[str, Any] = {
        "model": run,
        "source": "squares",
        "shards": f"{tmp_path}/shards/squares-*.tar",
        "out": str(tmp_path / "out"),
        "batch": batch,
        "samples_per_part": samples_per_part,
    }
    kill_at_the_first_part([f"--{name}={value}" for name, value in options.items()], tmp_path / "out")
    parts = len(list((tmp_path / "out").glob("part-*.parquet")))
    assert 0 < parts < -(-samples // samples_per_part)
    began = time.monotonic()
    predicted = predict_shards(PredictionOptions(**options), Console(file=StringIO()))
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"\n{samples - predicted.resumed} of {samples} samples in {seconds:.1f} s after the kill\n"
    )
    assert predicted.resumed == parts * samples_per_part
    assert [row["key"] for row in rows_of(tmp_path / "out")] == [f"{number:06d}" for number in range(samples)]
