"""Confused pairs of classes, against the dense matrix, and the sizes of what many classes make."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch.utils._python_dispatch import TorchDispatchMode

from perceiver_dist.metrics import confusion as confusion_module
from perceiver_dist.metrics.confusion import Confusion, PairCounts
from perceiver_dist.metrics.metric_totals import MetricTotals, Scores
from perceiver_dist.training.tracker.figures import draw_figures
from perceiver_dist.training.tracker.logged_metrics import StepMetrics
from pipelines.shards.source import SourceConfig

CPU = torch.device("cpu")
MANY = 10_000


def counted(true: list[int], predicted: list[int], classes: int, batch: int = 3) -> Confusion:
    counts = PairCounts(classes, CPU)
    for first in range(0, len(true), batch):
        rows = slice(first, first + batch)
        counts.add(torch.tensor(true[rows]), torch.tensor(predicted[rows]))
    return counts.confusion()


def matrix_of(true: list[int], predicted: list[int], classes: int) -> np.ndarray:
    cells = np.zeros((classes, classes), np.int64)
    np.add.at(cells, (np.array(true, np.int64), np.array(predicted, np.int64)), 1)
    return cells


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60), st.integers(1, 5))
def test_pairs_are_the_cells_of_the_matrix_however_often_they_are_merged(
    pairs: list[tuple[int, int]], merged_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confusion_module, "_MERGED_ROWS", merged_rows)
        true, predicted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        found = counted(true, predicted, classes=7)
    expected = matrix_of(true, predicted, 7)
    assert found.matrix.tolist() == expected.tolist()
    assert found.correct == np.trace(expected)
    assert len(found.counts) == np.count_nonzero(expected)
    mistakes = found.confusions(most=50)
    assert mistakes == sorted(mistakes, key=lambda pair: (-pair[2], *pair[:2]))
    assert sum(samples for *_, samples in mistakes) == len(pairs) - found.correct
    assert found.confusions(most=2) == mistakes[:2]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_values_by_class_are_those_of_scikit_learn_and_nan_where_undefined(
    pairs: list[tuple[int, int]],
) -> None:
    true, predicted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = counted(true, predicted, classes=6).by_class()
    expected = metrics.precision_recall_fscore_support(true, predicted, labels=range(6), zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "samples"), expected, strict=True):
        assert found[name] == pytest.approx(values, nan_ok=True)
    assert math.isnan(found["f1"][5])


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Dispatch mode that records the number of elements of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.elements = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("task", ["softmax", "multilabel"])
def test_nothing_of_an_evaluation_is_larger_than_its_logits(task: Any) -> None:
    totals = MetricTotals(SourceConfig("a", "x.tar", ["image"], 1000, task=task), CPU)
    draw = torch.Generator().manual_seed(0)
    samples = 0
    with LargestTensor() as largest:
        for _ in range(3):
            logits = torch.randn(8, 1000, generator=draw)
            labels = torch.randint(1000, (8,), generator=draw)
            if task == "multilabel":
                labels = torch.nn.functional.one_hot(labels, 1000)
            totals.update(logits, labels, torch.ones(8, dtype=torch.bool))
            samples += 8
        totals.compute()
        totals.by_class()
    assert largest.elements == (8 if task == "softmax" else samples) * 1000


def test_many_classes_get_a_table_of_confusions_in_place_of_a_matrix(tmp_path: Path) -> None:
    source = SourceConfig("a", "x.tar", ["image"], MANY)
    true = list(range(3000)) * 2
    found = counted(true, [0] * 6000, MANY, batch=1000)
    assert found.counts.nbytes == 3000 * 8
    history = [StepMetrics(step=1, loss=1.0)]
    files = draw_figures([source], {"a": Scores({}, found)}, history, tmp_path)
    assert [file.name for file in files] == ["confusions_a.csv", "learning_curves.png"]
    lines = files[0].read_text().splitlines()
    assert lines[:2] == ["true,predicted,samples", "1,0,2"]
    assert len(lines) == 1001
