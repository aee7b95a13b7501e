"""Tests of metrics against scikit-learn, with units that are empty, have one sample or one class, or are all bad."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scoring_ranks import ScoringRanks, Unit, metrics_of
from sklearn import metrics
from torch.nn import functional

from pipelines.shards.source import SourceConfig

BATCH = 4

Task = Literal["softmax", "multilabel"]


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoringRanks]:
    with ScoringRanks(3, tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


def source_of(task: Task, classes: int) -> SourceConfig:
    return SourceConfig("things", "x.tar", ["image"], classes, task=task)


@st.composite
def evaluations(draw: st.DrawFn) -> tuple[SourceConfig, list[Unit]]:
    """Draw a source, and 3 or 6 units for three ranks in which any rows may be padded or bad."""
    tasks: tuple[Task, ...] = ("softmax", "multilabel")
    task = draw(st.sampled_from(tasks))
    # With 2 or 3 classes units of a single class occur; from 20 classes the top-5 accuracy is reported.
    classes = draw(st.sampled_from([2, 3, 19, 20, 25] if task == "softmax" else [2, 5]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    most = draw(st.integers(1, classes)) if task == "softmax" else 2
    units = []
    for _ in range(draw(st.sampled_from([3, 6]))):
        valid = torch.tensor(draw(st.lists(st.booleans(), min_size=BATCH, max_size=BATCH)))
        shape = (BATCH,) if task == "softmax" else (BATCH, classes)
        labels = torch.randint(most, shape, generator=random)
        units.append((torch.randn(BATCH, classes, generator=random), labels.to(torch.uint8), valid))
    if task == "softmax":
        units = [(logits, labels.long(), valid) for logits, labels, valid in units]
    return source_of(task, classes), units


def expected(source: SourceConfig, units: list[Unit]) -> dict[str, float]:
    """Return the metrics of all valid rows at once, by their definition; NaN if undefined."""
    logits = torch.cat([logits[valid] for logits, _, valid in units])
    labels = torch.cat([labels[valid] for _, labels, valid in units])
    if source.task == "multilabel":
        return _expected_of_multilabel(logits, labels)
    best = logits.argsort(descending=True)[:, :5]
    found = {
        "samples": len(labels),
        "loss": functional.cross_entropy(logits, labels).item() if len(labels) else math.nan,
        "accuracy": metrics.accuracy_score(labels, best[:, 0]) if len(labels) else math.nan,
    }
    if source.num_classes >= 20:
        hits = [label in five for label, five in zip(labels.tolist(), best.tolist(), strict=True)]
        found["top_5_accuracy"] = np.mean(hits) if hits else math.nan
    return found


def _expected_of_multilabel(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    pairs = list(zip(labels.T.numpy(), logits.T.numpy(), strict=True))
    precisions = [metrics.average_precision_score(truth, scores) for truth, scores in pairs if truth.any()]
    areas = [metrics.roc_auc_score(truth, scores) for truth, scores in pairs if 0 < truth.sum() < len(truth)]
    loss = functional.binary_cross_entropy_with_logits(logits, labels.float()).item()
    return {
        "samples": len(labels),
        "loss": loss if len(labels) else math.nan,
        "mean_average_precision": np.mean(precisions) if precisions else math.nan,
        "roc_auc": np.mean(areas) if areas else math.nan,
        "classes_with_positives": len(precisions),
        "classes_with_both": len(areas),
    }


def without_d_prime(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if name != "d_prime"}


NOTHING = torch.zeros(BATCH, dtype=torch.bool)
ONE = torch.arange(BATCH) == 0
EMPTY_LAST_UNITS = (
    source_of("softmax", 25),
    [(torch.eye(25)[:BATCH], torch.arange(BATCH), valid) for valid in (~NOTHING, ONE, NOTHING)],
)
ALL_BAD = (source_of("multilabel", 2), [(torch.zeros(BATCH, 2), torch.zeros(BATCH, 2).byte(), NOTHING)] * 3)


@settings(max_examples=150)
@example(EMPTY_LAST_UNITS)
@example(ALL_BAD)
@given(evaluations())
def test_metrics_are_those_of_the_whole_set_for_any_number_of_ranks(
    three_ranks: ScoringRanks, evaluation: tuple[SourceConfig, list[Unit]]
) -> None:
    source, units = evaluation
    wanted = pytest.approx(expected(source, units), rel=1e-5, abs=1e-6, nan_ok=True)
    assert without_d_prime(metrics_of(source, units)) == wanted
    for found in three_ranks.metrics(source, units):
        assert without_d_prime(found) == wanted


def test_perfect_predictions_score_1_even_if_a_class_is_missing() -> None:
    labels = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.uint8)
    found = metrics_of(source_of("multilabel", 3), [(40.0 * labels - 20, labels, ~NOTHING)])
    assert (found["mean_average_precision"], found["roc_auc"]) == (1, 1)
    assert found["classes_with_positives"] == 2


def test_the_roc_curve_counts_the_classes_that_have_negatives_too() -> None:
    labels = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1]], dtype=torch.uint8)
    found = metrics_of(source_of("multilabel", 2), [(40.0 * labels - 20, labels, ~NOTHING)])
    assert (found["mean_average_precision"], found["roc_auc"]) == (1, 1)
    assert (found["classes_with_positives"], found["classes_with_both"]) == (2, 1)


def test_scores_that_are_nan_rank_nothing() -> None:
    labels = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]], dtype=torch.uint8)
    logits = 40.0 * labels - 20
    logits[1, 1] = torch.nan
    found = metrics_of(source_of("multilabel", 2), [(logits, labels, ~NOTHING)])
    assert (found["mean_average_precision"], found["classes_with_positives"]) == (1, 1)
    assert math.isnan(found["loss"])


def test_a_nan_loss_is_reported() -> None:
    logits = torch.zeros(BATCH, 2)
    logits[1] = torch.nan
    found = metrics_of(source_of("softmax", 2), [(logits, torch.zeros(BATCH, dtype=torch.long), ~NOTHING)])
    assert math.isnan(found["loss"])
