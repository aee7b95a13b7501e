"""Running totals of an evaluation, from which its metrics are computed; of any subset of the modalities."""

from collections.abc import Mapping
from math import sqrt
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MultilabelAUROC,
    MultilabelAveragePrecision,
)
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from perceiver_dist.training.news import Scores
from perceiver_dist.training.subsets import Subset
from pipelines.source import SourceConfig

_MANY_CLASSES = 20
"""From so many classes on it is told whether the label is among the five best; of ten it would say little."""


class Totals:
    """Running totals of one source and subset; torchmetrics adds them up over the ranks, if there are any.

    Args:
        source: The source.
        device: Where logits and labels are.
    """

    def __init__(self, source: SourceConfig, device: torch.device) -> None:
        self._task = source.task
        # In fp64, so that the count is exact and the mean does not depend on the order, however many samples.
        self._loss = MeanMetric().set_dtype(torch.float64).to(device)
        self._samples = SumMetric().set_dtype(torch.float64).to(device)
        self._confusion: Metric | None = None
        self._more: dict[str, Metric] = {}
        self._classes = source.num_classes
        if source.task == "softmax":
            self._confusion = MulticlassConfusionMatrix(self._classes).to(device)
            if self._classes >= _MANY_CLASSES:
                self._more["top_5_accuracy"] = MulticlassAccuracy(self._classes, top_k=5, average="micro").to(
                    device
                )
        else:
            self._more["mean_average_precision"] = MultilabelAveragePrecision(self._classes).to(device)
            self._more["roc_auc"] = MultilabelAUROC(self._classes).to(device)

    def update(self, logits: Tensor, labels: Tensor, real: Tensor) -> None:
        """Add a batch, without the rows that are padded or bad.

        A batch without real rows is added too: torchmetrics can gather what has no rows, but not what was never
        updated, whose shape and dtype are unknown.

        Args:
            logits: (B, classes) fp32.
            labels: (B,) int64 for softmax, (B, classes) for multilabel.
            real: (B,) bool; which rows count.
        """
        logits, labels = logits[real], labels[real]
        self._samples.update(real.sum())
        self._loss.update(loss_per_sample(logits, labels, self._task))
        if self._confusion is not None:
            self._confusion.update(logits.argmax(1), labels)
        for metric in self._more.values():
            metric.update(logits if self._task == "softmax" else logits.sigmoid(), labels.long())

    def compute(self) -> Scores:
        """Return metrics and confusion matrix of all that was added, on all ranks."""
        metrics = {"samples": self._samples.compute().item(), "loss": self._loss.compute().item()}
        counts = self._confusion.compute() if self._confusion is not None else None
        if counts is not None:
            metrics["accuracy"] = (counts.trace() / counts.sum()).item()
        metrics |= {name: metric.compute().item() for name, metric in self._more.items()}
        if "roc_auc" in metrics:
            # Distance between the scores of positives and negatives, were both normal with the same spread.
            metrics["d_prime"] = sqrt(2) * NormalDist().inv_cdf(min(max(metrics["roc_auc"], 1e-9), 1 - 1e-9))
        return Scores(metrics, None if counts is None else counts.cpu().numpy())

    def by_class(self) -> dict[str, list[float]]:
        """Return metric -> value of every class, of what was added here; NaN where a class gives none.

        Softmax: samples of the class, precision, recall and F1. Multilabel: samples that have the class, average
        precision and the area under the ROC curve.
        """
        if self._confusion is not None:
            return _precision_and_recall(self._confusion.compute().double())
        metric: Any = self._more["mean_average_precision"]  # torch knows no types of what a metric holds
        scores, labels = dim_zero_cat(metric.preds), dim_zero_cat(metric.target)
        samples = labels.sum(0)
        precision = multilabel_average_precision(scores, labels, self._classes, average="none")
        area = multilabel_auroc(scores, labels, self._classes, average="none")
        only_one_kind = (samples == 0) | (samples == len(labels))
        return {
            "samples": samples.tolist(),
            "average_precision": torch.where(samples == 0, torch.nan, precision).tolist(),
            "roc_auc": torch.where(only_one_kind, torch.nan, area).tolist(),
        }


def _precision_and_recall(counts: Tensor) -> dict[str, list[float]]:
    """Of a confusion matrix (classes, classes), rows true: a class that never occurs or is never told gives NaN."""
    right, true, told = counts.diag(), counts.sum(1), counts.sum(0)
    return {
        "samples": true.long().tolist(),
        "precision": (right / told).tolist(),
        "recall": (right / true).tolist(),
        "f1": (2 * right / (true + told)).tolist(),
    }


def scores_of(source: SourceConfig, totals: Mapping[Subset, Totals]) -> Scores:
    """Return the scores of all subsets in one: the name of a metric says which subset it is of, if not of all.

    Args:
        source: The source.
        totals: What was added up, by subset.
    """
    together = Scores()
    for subset, total in totals.items():
        scores = total.compute()
        if set(subset) == set(source.modalities):
            together.confusion = scores.confusion
            together.metrics.update(scores.metrics)
        else:
            suffix = f"_{'_and_'.join(subset)}_only"
            del scores.metrics["samples"]
            together.metrics.update({f"{name}{suffix}": value for name, value in scores.metrics.items()})
    return together


def loss_per_sample(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Return the loss of each sample.

    Args:
        logits: (B, classes).
        labels: (B,) int64 for softmax, (B, classes) for multilabel.
        task: softmax (cross entropy) or multilabel (binary cross entropy, mean over classes).

    Returns:
        (B,) losses in nats.
    """
    if task == "softmax":
        return functional.cross_entropy(logits, labels, reduction="none")
    return functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), reduction="none"
    ).mean(1)
