"""Tests of the metrics per class against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from perceiver_dist.metrics.metric_totals import MetricTotals
from pipelines.shards.source import SourceConfig

CLASSES = 4
CPU = torch.device("cpu")


def test_precision_recall_and_f1_per_class() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, CLASSES, generator=draw), torch.randint(3, (50,), generator=draw)
    totals = MetricTotals(SourceConfig("a", "x.tar", ["image"], CLASSES), CPU)
    totals.update(logits[:30], labels[:30], torch.ones(30, dtype=torch.bool))
    totals.update(logits[30:], labels[30:], torch.arange(20) < 10)
    found = totals.by_class()
    expected = metrics.precision_recall_fscore_support(
        labels[:40], logits[:40].argmax(1), labels=range(CLASSES), zero_division=np.nan
    )
    precision, recall, _, samples = expected
    assert found["samples"] == samples.tolist()
    assert found["samples"][3] == 0
    assert found["precision"] == pytest.approx(precision, nan_ok=True)
    assert found["recall"] == pytest.approx(recall, nan_ok=True)
    pairs = zip(found["precision"][:3], found["recall"][:3], strict=True)
    assert found["f1"][:3] == pytest.approx([2 * p * r / (p + r) for p, r in pairs])


def test_average_precision_and_roc_auc_per_class() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, CLASSES, generator=draw), torch.randint(2, (50, CLASSES), generator=draw)
    labels[:, 3] = 0
    totals = MetricTotals(SourceConfig("a", "x.tar", ["image"], CLASSES, task="multilabel"), CPU)
    totals.update(logits, labels.to(torch.uint8), torch.arange(50) < 45)
    found = totals.by_class()
    assert found["samples"] == labels[:45].sum(0).tolist()
    for number in range(3):
        truth, scores = labels[:45, number], logits[:45, number]
        expected = metrics.average_precision_score(truth, scores)
        assert found["average_precision"][number] == pytest.approx(expected)
        assert found["roc_auc"][number] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert np.isnan([found["average_precision"][3], found["roc_auc"][3]]).all()
