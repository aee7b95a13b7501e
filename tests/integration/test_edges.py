"""Edge cases of whole runs, in counts, sizes and moments.

Sources with one sample, with exactly full units, and with units without samples; held-out samples that are all bad or
all of one class; a source that is never scheduled; fewer units than workers; deleted checkpoints; the last step.
"""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
from rich.console import Console

from perceiver_dist.config.command_line import read_run
from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.inference.evaluation_report import report, write_report
from perceiver_dist.inference.inference_options import EvaluationOptions, PredictionOptions
from perceiver_dist.inference.model_evaluation import evaluate_model
from perceiver_dist.inference.shard_prediction import predict_shards
from perceiver_dist.training.driver import run_training
from pipelines.shards.shard_writer import Sample, write_shards
from pipelines.shards.source import SourceConfig

MANY_CLASSES = 25
"""Enough that top-5 accuracy is reported, and more than any source has samples."""
STEPS = 6


def write_images(folder: Path, split: str, labels: list[Any], bad: bool = False) -> str:
    """Write one shard with a sample per label and return its path; bad samples cannot be decoded."""
    random = np.random.default_rng(0)
    samples: list[Sample] = [
        {"__key__": f"{n:04d}", "png": b"no image" if bad else small_run.square_png(0, random), "cls": label}
        for n, label in enumerate(labels)
    ]
    write_shards(samples, folder, split, samples_per_shard=100)
    return f"{folder}/{split}-000000.tar"


def source(folder: Path, name: str, train: list[Any], held_out: list[Any], **options: Any) -> SourceConfig:
    """Write a source's shards; with `bad`, its held-out samples cannot be decoded. Other options are the source's."""
    bad = options.pop("bad", False)
    return SourceConfig(
        name=name,
        train_shards=write_images(folder / name, "train", train),
        eval_shards=write_images(folder / name, "eval", held_out, bad),
        modalities=["image"],
        **options,
    )


def sources_of(folder: Path, group: str) -> list[SourceConfig]:
    """Write and return the sources of one run.

    They are split into two runs because each source has a read task, and the tests' Ray lacks CPUs for all at once.
    """
    if group == "softmax":
        return [
            source(folder, "one", train=[0], held_out=[24], num_classes=MANY_CLASSES),
            source(folder, "full", train=[*range(16)], held_out=[*range(16)], num_classes=MANY_CLASSES),
            source(folder, "bad", train=[0, 1], held_out=[0, 1], bad=True, num_classes=2),
            source(folder, "never", train=[0], held_out=[1], num_classes=2, weight=1e-9),
        ]
    multilabel: dict[str, Any] = {"num_classes": 3, "task": "multilabel"}
    return [
        source(folder, "uneven", train=[*range(17)], held_out=[*range(10)], num_classes=MANY_CLASSES),
        source(folder, "labels", train=["0", "0,1"], held_out=["0", "0,1", "", "1", "0"], **multilabel),
        source(folder, "unlabelled", train=["0", "1"], held_out=["", ""], **multilabel),
    ]


@pytest.fixture(scope="module", params=["softmax", "multilabel"])
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Train on edge-case sources with units of 4 samples and 4 lanes; return the finished run.

    With 2 workers on the sources of softmax tasks. With 4 on the others, three of which get no sample of the source
    that has two held-out samples, one unit.
    """
    request.getfixturevalue("ray_cluster")
    folder = tmp_path_factory.mktemp("edges")
    options: dict[str, Any] = {
        "steps": STEPS,
        "micro_batch": 4,
        "eval_every": 2,
        "checkpoint_every": 1,
        "keep_checkpoints": 1,
        "num_workers": 2 if request.param == "softmax" else 4,
    }
    config = small_run.small_config(folder, folder / "runs", "edges", **options)
    config = replace(config, sources=sources_of(folder, request.param), optim=OptimConfig(warmup_steps=1))
    screen = StringIO()
    result = run_training(config, Console(file=screen, width=200))
    return {**result, "folder": folder / "runs" / "edges", "screen": screen.getvalue()}


HELD_OUT_SAMPLES = {"one": 1, "full": 16, "bad": 0, "never": 1, "uneven": 10, "labels": 5, "unlabelled": 2}


@pytest.mark.runs
def test_every_held_out_sample_is_counted_once_wherever_units_end(run: dict[str, Any]) -> None:
    assert (run["exit"], run["steps"], run["restarts"]) == ("completed", STEPS, 0)
    counted = {
        name.partition("/")[0]: value for name, value in run["metrics"].items() if name.endswith("/samples")
    }
    assert counted == {name: HELD_OUT_SAMPLES[name] for name in counted}
    top_5 = [value for name, value in run["metrics"].items() if name.endswith("/top_5_accuracy")]
    assert top_5
    assert all(math.isfinite(value) for value in top_5)


@pytest.mark.runs
def test_a_metric_without_samples_is_reported_as_undefined(run: dict[str, Any]) -> None:
    source, metric = (
        ("bad", "accuracy") if "bad/samples" in run["metrics"] else ("unlabelled", "mean_average_precision")
    )
    assert math.isnan(run["metrics"][f"{source}/{metric}"])
    stored = json.loads((run["folder"] / "result.json").read_text())["metrics"]
    assert stored[f"{source}/{metric}"] is None
    row = next(line.split() for line in run["screen"].splitlines() if line.startswith(f"{source} "))
    assert row[1] == str(HELD_OUT_SAMPLES[source])
    assert "-" in row
    warnings = [line for line in run["screen"].splitlines() if " cannot be computed: " in line]
    assert [line.partition(" cannot")[0] for line in warnings] == [
        f"warning: source '{source}': "
        + ("loss, accuracy" if source == "bad" else "mean_average_precision, roc_auc, d_prime")
    ]


@pytest.mark.runs
def test_the_mean_over_classes_skips_classes_without_positives(run: dict[str, Any]) -> None:
    found = {name: run["metrics"].get(f"{name}/classes_with_positives") for name in ("labels", "unlabelled")}
    assert found in ({"labels": 2, "unlabelled": 0}, {"labels": None, "unlabelled": None})


@pytest.mark.runs
def test_only_the_newest_checkpoint_is_kept_and_the_learning_rate_decays(run: dict[str, Any]) -> None:
    assert [folder.name for folder in run["folder"].glob("step-*")] == [f"step-{STEPS:08d}"]
    entries = [json.loads(line) for line in (run["folder"] / "metrics.jsonl").read_text().splitlines()]
    rates = [entry["train/learning_rate"] for entry in entries if "train/learning_rate" in entry]
    assert len(rates) == STEPS
    assert rates[-1] < max(rates)
    evaluated = [entry["step"] for entry in entries if "train/loss" not in entry]
    assert evaluated == [2, 4, 6]


@pytest.mark.runs
def test_a_finished_run_returns_the_same_metrics_when_restarted(run: dict[str, Any]) -> None:
    config = read_run((run["folder"] / "config.yaml").read_text())
    restarted = run_training(config, Console(file=StringIO(), width=200))
    assert restarted["metrics"] == pytest.approx(run["metrics"], nan_ok=True)


@pytest.mark.runs
def test_a_separate_evaluation_finds_the_same_metrics(run: dict[str, Any]) -> None:
    names = {name.partition("/")[0] for name in run["metrics"]}
    # A source without a single valid sample cannot be evaluated, so the others are evaluated one at a time.
    for name in sorted(names - {"bad"}) if "bad" in names else [""]:
        options = EvaluationOptions(model=str(run["folder"]), source=name or None, actors=1, readers=1)
        found = evaluate_model(options, Console(file=StringIO()))
        expected = {
            key: value for key, value in run["metrics"].items() if key.startswith(f"{name}/" if name else "")
        }
        assert found.metrics == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)
        write_report(found)
        sources = report(found)["sources"]
        assert sources.keys() == ({name} if name else names)
        assert all(sources[each]["samples"] == HELD_OUT_SAMPLES[each] for each in sources)


@pytest.mark.runs
def test_predictions_cover_every_sample(run: dict[str, Any], tmp_path: Path) -> None:
    held_out = {"one": 1, "full": 16, "bad": 2} if "bad/samples" in run["metrics"] else {"labels": 5}
    for name, samples in held_out.items():
        options = PredictionOptions(
            model=str(run["folder"]),
            source=name,
            shards=f"{run['folder'].parents[1]}/{name}/eval-000000.tar",
            out=str(tmp_path / name),
            actors=1,
            readers=1,
        )
        predicted = predict_shards(options, Console(file=StringIO()))
        assert (predicted.samples, predicted.bad) == (samples, samples if name == "bad" else 0)
