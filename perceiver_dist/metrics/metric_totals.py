"""Running totals of an evaluation, from which metrics are computed over all ranks.

A rank may have no valid sample: units at the end of an evaluation set are padded, and every sample of a unit may be
bad. So ranks keep sums and rows, which may be empty, and metrics are computed once, from those of all ranks. A metric
that no sample defines (the accuracy of no samples, the precision of a class without positives) is NaN, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan, sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from perceiver_dist.config.best_metric import MANY_CLASSES
from perceiver_dist.metrics.confusion import Confusion, PairCounts
from perceiver_dist.metrics.losses import loss_per_sample
from perceiver_dist.metrics.over_ranks import gathered, summed
from perceiver_dist.metrics.subsets import Subset
from pipelines.shards.source import SourceConfig


@dataclass
class Scores:
    """Result of evaluating one source.

    Attributes:
        metrics: Metric name -> value; softmax: accuracy, loss, of many classes top_5_accuracy; multilabel:
            mean_average_precision, roc_auc, d_prime and loss, and the number of classes that the means are over:
            classes_with_positives for average precision, classes_with_both (positives and negatives) for the ROC curve;
            and samples, the number of samples counted. With a subset of modalities the name says which. NaN where no
            sample defines the value.
        confusion: True and predicted classes, with all modalities; None for multilabel.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    confusion: Confusion | None = None


_TOP = 5
"""As in the usual top-5 accuracy on ImageNet."""

_COUNTS = {"samples", "classes_with_positives", "classes_with_both"}
"""Metrics that count held-out samples or classes, and so are the same for every modality subset."""


class MetricTotals:
    """Running totals of one source and modality subset; `compute` sums them over the ranks, if there are several.

    Args:
        source: The source.
        device: Device of logits and labels.
    """

    def __init__(self, source: SourceConfig, device: torch.device) -> None:
        self._task = source.task
        self._classes = source.num_classes
        # Number of samples, sum of their losses, and hits among the top 5. fp64 keeps the counts exact and makes the
        # mean independent of the order in which samples are added, to far below what is displayed.
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._pairs = PairCounts(self._classes, device) if source.task == "softmax" else None
        # Rows of multilabel sources, whose metrics depend on the ranking of all scores. The lists start with an empty
        # tensor, so that a rank without valid samples has one to gather.
        self._logits = [torch.zeros(0, self._classes, device=device)]
        self._labels = [torch.zeros(0, self._classes, dtype=torch.uint8, device=device)]

    def update(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Add the valid rows of a batch, of which there may be none.

        Args:
            logits: (B, classes) fp32.
            labels: (B,) int64 for softmax, (B, classes) for multilabel.
            valid: (B,) bool on the CPU; false for rows that are padded or bad.
        """
        if not valid.all():
            logits, labels = logits[valid], labels[valid]
        self._sums[0] += len(logits)
        self._sums[1] += loss_per_sample(logits, labels, self._task).sum(dtype=torch.float64)
        if self._pairs is None:
            self._logits.append(logits)
            self._labels.append(labels.to(torch.uint8))
            return
        self._pairs.add(labels, logits.argmax(1))
        if self._classes >= MANY_CLASSES:
            self._sums[2] += (logits.topk(_TOP).indices == labels[:, None]).sum()

    def compute(self) -> Scores:
        """Return metrics and confusions over all ranks; every rank must call this."""
        samples, loss, hits = summed(self._sums).tolist()
        metrics = {"samples": samples, "loss": _mean(loss, samples)}
        if self._pairs is None:
            metrics |= _multilabel_metrics(*self._rows())
            return Scores(metrics, None)
        confusion = self._pairs.confusion()
        # A class that comes first among scores that are no numbers is not a prediction.
        predicted = 0 if isnan(loss) else samples
        metrics["accuracy"] = _mean(confusion.correct, predicted)
        if self._classes >= MANY_CLASSES:
            metrics[f"top_{_TOP}_accuracy"] = _mean(hits, predicted)
        return Scores(metrics, confusion)

    def by_class(self) -> dict[str, list[float]]:
        """Return metric -> value per class, over all ranks; NaN where a class has none. Every rank must call this.

        Softmax: number of samples of the class, precision, recall and F1. Multilabel: number of samples with the class,
        average precision and area under the ROC curve.
        """
        if self._pairs is not None:
            return self._pairs.confusion().by_class()
        logits, labels = self._rows()
        precision, area = _curves_by_class(logits, labels)
        return {
            "samples": labels.long().sum(0).tolist(),
            "average_precision": precision.tolist(),
            "roc_auc": area.tolist(),
        }

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Return logits and labels (samples, classes) of all ranks."""
        return gathered(torch.cat(self._logits)), gathered(torch.cat(self._labels))


def _mean(total: float, samples: float) -> float:
    return total / samples if samples else nan


def _multilabel_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return means over the classes with a defined value, and the numbers of these classes."""
    precision, area = _curves_by_class(logits, labels)
    roc_auc = area.nanmean().item()
    # d' is the distance between the means of positive and negative scores in standard deviations, if both were normal
    # with equal variance. Clamping keeps it finite for an area of 0 or 1.
    d_prime = sqrt(2) * NormalDist().inv_cdf(min(max(roc_auc, 1e-9), 1 - 1e-9)) if not isnan(roc_auc) else nan
    return {
        "mean_average_precision": precision.nanmean().item(),
        "roc_auc": roc_auc,
        "d_prime": d_prime,
        "classes_with_positives": float((~precision.isnan()).sum()),
        "classes_with_both": float((~area.isnan()).sum()),
    }


def _curves_by_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return average precision and area under the ROC curve, each (classes,) fp64.

    Both are NaN for a class without positives or with a score that is NaN; the area is also NaN for a class without
    negatives.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    precision = torch.full((logits.shape[1],), nan, dtype=torch.float64)
    area = precision.clone()
    for number, (column, truth_bytes) in enumerate(zip(logits.T, labels.T, strict=True)):
        # One class at a time, since fp64 scores of all take twice the memory of the logits. The curves need scores in
        # [0, 1]. In fp64 the sigmoid keeps logits up to 36 apart; in fp32 all above 16 become 1, which makes ties.
        score, truth = column.double().sigmoid(), truth_bytes.long()
        positives = int(truth.sum())
        # A ranking of scores that are no numbers is none.
        if score.isnan().any():
            continue
        if positives:
            precision[number] = binary_average_precision(score, truth, validate_args=False)
        if 0 < positives < len(truth):
            area[number] = binary_auroc(score, truth, validate_args=False)
    return precision, area


def scores_of(source: SourceConfig, totals: Mapping[Subset, MetricTotals]) -> Scores:
    """Return the scores of all subsets; metric names of proper subsets end with the subset, as in accuracy_audio_only.

    Args:
        source: The source.
        totals: Running totals by subset.
    """
    together = Scores()
    for subset, total in totals.items():
        scores = total.compute()
        if set(subset) == set(source.modalities):
            together.confusion = scores.confusion
            together.metrics.update(scores.metrics)
        else:
            suffix = f"_{'_and_'.join(subset)}_only"
            together.metrics.update(
                {f"{name}{suffix}": value for name, value in scores.metrics.items() if name not in _COUNTS}
            )
    return together
