"""Running totals of an evaluation, from which metrics are computed over all ranks.

A rank may have no valid sample: units at the end of an evaluation set are padded, and every sample of a unit may be
bad. So ranks keep sums and rows, which may be empty, and metrics are computed once, from those of all ranks. A metric
that no sample defines (the accuracy of no samples, the precision of a class without positives) is NaN, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan, sqrt
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, distributed

from perceiver_dist.metrics.losses import loss_per_sample
from perceiver_dist.metrics.subsets import Subset
from pipelines.shards.source import SourceConfig


@dataclass
class Scores:
    """Result of evaluating one source.

    Attributes:
        metrics: Metric name -> value; softmax: accuracy, loss, of many classes top_5_accuracy; multilabel:
            mean_average_precision, roc_auc, d_prime, loss, and classes_with_positives, the number of classes that the
            mean is over; and samples, the number of samples counted. With a subset of modalities the name says which.
            NaN where no sample defines the value.
        confusion: (classes, classes) counts, rows true and columns predicted, with all modalities; None for
            multilabel.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    confusion: np.ndarray | None = None


_MANY_CLASSES = 20
"""Number of classes from which top-5 accuracy is reported; with ten classes chance alone would reach 0.5."""

_TOP = 5
"""As in the usual top-5 accuracy on ImageNet."""

_COUNTS = {"samples", "classes_with_positives"}
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
        self._confusion: Tensor | None = None
        if source.task == "softmax":
            self._confusion = torch.zeros(self._classes, self._classes, dtype=torch.int64, device=device)
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
        if self._confusion is None:
            self._logits.append(logits)
            self._labels.append(labels.to(torch.uint8))
            return
        cells = labels * self._classes + logits.argmax(1)
        self._confusion += torch.bincount(cells, minlength=self._classes**2).view_as(self._confusion)
        if self._classes >= _MANY_CLASSES:
            self._sums[2] += (logits.topk(_TOP).indices == labels[:, None]).sum()

    def compute(self) -> Scores:
        """Return metrics and confusion matrix over all ranks; every rank must call this."""
        samples, loss, hits = _summed(self._sums).tolist()
        metrics = {"samples": samples, "loss": _mean(loss, samples)}
        if self._confusion is None:
            metrics |= _multilabel_metrics(*self._rows())
            return Scores(metrics, None)
        confusion = _summed(self._confusion)
        metrics["accuracy"] = _mean(confusion.trace().item(), samples)
        if self._classes >= _MANY_CLASSES:
            metrics[f"top_{_TOP}_accuracy"] = _mean(hits, samples)
        return Scores(metrics, confusion.cpu().numpy())

    def by_class(self) -> dict[str, list[float]]:
        """Return metric -> value per class, over all ranks; NaN where a class has none. Every rank must call this.

        Softmax: number of samples of the class, precision, recall and F1. Multilabel: number of samples with the class,
        average precision and area under the ROC curve.
        """
        if self._confusion is not None:
            return _precision_and_recall(_summed(self._confusion).double())
        logits, labels = self._rows()
        precision, area = _curves_by_class(logits, labels)
        return {
            "samples": labels.long().sum(0).tolist(),
            "average_precision": precision.tolist(),
            "roc_auc": area.tolist(),
        }

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Return logits and labels (samples, classes) of all ranks."""
        return _gathered(torch.cat(self._logits)), _gathered(torch.cat(self._labels))


def _summed(tensor: Tensor) -> Tensor:
    """Return the sum over the ranks, leaving the tensor unchanged."""
    if not distributed.is_initialized():
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total


def _gathered(rows: Tensor) -> Tensor:
    """Return the rows of all ranks; each rank may have a different number of them, or none."""
    if not distributed.is_initialized():
        return rows
    # Imported here, since only multilabel sources need torchmetrics and its import takes a second.
    from torchmetrics.utilities.distributed import gather_all_tensors

    return torch.cat(gather_all_tensors(rows))


def _mean(total: float, samples: float) -> float:
    return total / samples if samples else nan


def _multilabel_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return means over the classes with a defined value, and the number of classes with positives."""
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
    }


def _curves_by_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return average precision and area under the ROC curve, each (classes,) fp64.

    Both are NaN for a class without positives; the area is also NaN for a class without negatives.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    precision = torch.full((logits.shape[1],), nan, dtype=torch.float64)
    area = precision.clone()
    # The curves need scores in [0, 1]. In fp64 the sigmoid keeps logits up to 36 apart; in fp32 all above 16 become 1,
    # which makes ties.
    scores = logits.double().sigmoid()
    for number, (truth, score) in enumerate(zip(labels.long().T, scores.T, strict=True)):
        positives = int(truth.sum())
        if positives:
            precision[number] = binary_average_precision(score, truth, validate_args=False)
        if 0 < positives < len(truth):
            area[number] = binary_auroc(score, truth, validate_args=False)
    return precision, area


def _precision_and_recall(counts: Tensor) -> dict[str, list[float]]:
    """Return precision, recall and F1 per class of a confusion matrix (classes, classes), whose rows are true classes.

    Recall is NaN for a class that never occurs, precision for one that is never predicted.
    """
    correct, true, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    return {
        "samples": true.long().tolist(),
        "precision": (correct / predicted).tolist(),
        "recall": (correct / true).tolist(),
        "f1": (2 * correct / (true + predicted)).tolist(),
    }


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
