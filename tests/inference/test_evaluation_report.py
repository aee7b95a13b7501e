"""Reports of models with many classes: cut to what can be read, and linear in the classes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch

from perceiver_dist.display.run_figures import MAX_DRAWN_CLASSES
from perceiver_dist.inference.evaluation_report import write_report
from perceiver_dist.inference.model_evaluation import ModelEvaluation, SourceEvaluation
from perceiver_dist.inference.trained_model import load_model
from perceiver_dist.metrics.metric_totals import MetricTotals, scores_of
from perceiver_dist.metrics.subsets import modality_subsets
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import SourceConfig

SAMPLES = 64


def evaluation_of(folder: Path, classes: int, task: Any = "softmax") -> ModelEvaluation:
    """Evaluate random predictions of a model with this number of classes."""
    source = SourceConfig("things", "x.tar", ["image"], classes, task=task)
    model = load_model(str(tiny_model.export(folder, source)))
    subsets = modality_subsets(source.modalities)
    totals = {subset: MetricTotals(source, torch.device("cpu")) for subset in subsets}
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(classes // 2, (SAMPLES,), generator=draw)
    if task == "multilabel":
        labels = torch.nn.functional.one_hot(labels, classes).to(torch.uint8)
    logits = torch.randn(SAMPLES, classes, generator=draw)
    totals[subsets[0]].update(logits, labels, torch.ones(SAMPLES, dtype=torch.bool))
    found = SourceEvaluation(
        replace(source, eval_shards="x.tar"),
        SourceIndex([]),
        SAMPLES,
        [],
        scores_of(source, totals),
        totals[subsets[0]].by_class(),
        1.0,
    )
    return ModelEvaluation(model, str(folder / "report"), 4, 1, "cpu", [found])


def report_of(evaluation: ModelEvaluation) -> dict[str, Any]:
    content = json.loads((Path(evaluation.out) / "report.json").read_text())
    found: dict[str, Any] = content["sources"]["things"]
    return found


def page_of(evaluation: ModelEvaluation) -> str:
    return (Path(evaluation.out) / "report.md").read_text()


def test_few_classes_have_all_rows_and_a_matrix(tmp_path: Path) -> None:
    evaluation = evaluation_of(tmp_path, 4)
    files = write_report(evaluation)
    assert [file.rpartition("/")[2] for file in files] == ["report.json", "report.md", "confusion_things.png"]
    confusions = report_of(evaluation)["confusions"]
    recalled = sum((entry["recall"] or 0) * entry["samples"] for entry in report_of(evaluation)["classes"])
    assert sum(pair["samples"] for pair in confusions) + recalled == pytest.approx(SAMPLES)
    page = page_of(evaluation)
    assert "2 of 4 classes have no sample here." in page
    assert "![Confusion matrix](confusion_things.png)" in page
    first = confusions[0]
    assert f"| {first['true']} | {first['predicted']} | {first['samples']} |" in page


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_files_grow_with_the_classes_and_not_with_their_square(tmp_path: Path, task: Any) -> None:
    classes = 2000
    assert classes > MAX_DRAWN_CLASSES
    evaluation = evaluation_of(tmp_path, classes, task)
    files = write_report(evaluation)
    assert [file.rpartition("/")[2] for file in files] == ["report.json", "report.md"]
    # 90 to 140 bytes for each class, and 80 for each confused pair.
    assert (tmp_path / "report" / "report.json").stat().st_size < 200 * classes + 100 * SAMPLES
    page = page_of(evaluation)
    assert len(page.splitlines()) < 150
    assert len(report_of(evaluation)["classes"]) == classes
    assert "classes with the lowest" in page
    assert "of 2,000 classes have no sample here." in page
