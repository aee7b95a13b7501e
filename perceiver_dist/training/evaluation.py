"""Evaluation on held-out shards: every sample once, over all ranks, with any subset of the modalities."""

from collections.abc import Iterable, Sequence
from itertools import combinations
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

from perceiver_dist.training.batches import Batch
from perceiver_dist.training.news import Scores
from pipelines.source import SourceConfig

_MANY_CLASSES = 20
"""From so many classes on it is told whether the label is among the five best; of ten it would say little."""


def modality_subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all modalities first, then every proper subset that is not empty, larger ones first.

    Args:
        modalities: A source's modalities.
    """
    return [subset for size in range(len(modalities), 0, -1) for subset in combinations(modalities, size)]


@torch.no_grad()
def evaluate(
    engine: Any,
    source: SourceConfig,
    batches: Iterable[Batch],
    subsets: Sequence[tuple[str, ...]],
    precision: str,
) -> Scores:
    """Evaluate one source; every rank must call this with its own batches, the same number on each.

    Args:
        engine: DeepSpeed engine; called as (arrays, present, source name) -> logits (B, classes).
        source: The source that the batches come from.
        batches: This rank's units, padded ones included.
        subsets: Modalities to look at; each subset is evaluated on the same samples.
        precision: fp32 or bf16.

    Returns:
        Scores over all ranks' samples, the same on every rank.
    """
    engine.eval()
    totals = {subset: _Totals(source, engine.device) for subset in subsets}
    for batch in batches:
        for subset, total in totals.items():
            present = {
                modality: flags if modality in subset else torch.zeros_like(flags)
                for modality, flags in batch.present.items()
            }
            with autocast(engine.device, precision):
                logits = engine(batch.arrays, present, source.name)
            total.update(logits.float(), batch)
    engine.train()
    scores = Scores()
    for subset, total in totals.items():
        suffix = "" if set(subset) == set(source.modalities) else f"_{'_and_'.join(subset)}_only"
        values = total.compute()
        if suffix:
            del values["samples"]
        scores.metrics.update({f"{name}{suffix}": value for name, value in values.items()})
        if not suffix and total.confusion is not None:
            scores.confusion = total.confusion.compute().cpu().numpy()
    return scores


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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for a forward pass: bfloat16 matrix products for bf16, nothing for fp32.

    Args:
        device: Device of the forward pass.
        precision: fp32 or bf16.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class _Totals:
    """Running totals of one source and subset; torchmetrics adds them up over the ranks."""

    def __init__(self, source: SourceConfig, device: torch.device) -> None:
        self._task = source.task
        self._loss = MeanMetric().to(device)
        self._samples = SumMetric().to(device)
        self.confusion: Metric | None = None
        self._more: dict[str, Metric] = {}
        classes = source.num_classes
        if source.task == "softmax":
            self.confusion = MulticlassConfusionMatrix(classes).to(device)
            if classes >= _MANY_CLASSES:
                self._more["top_5_accuracy"] = MulticlassAccuracy(classes, top_k=5, average="micro").to(
                    device
                )
        else:
            self._more["mean_average_precision"] = MultilabelAveragePrecision(classes).to(device)
            self._more["roc_auc"] = MultilabelAUROC(classes).to(device)

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch: logits (B, classes); padded rows are left out.

        A batch without real rows is added too: torchmetrics can gather what has no rows, but not what was never
        updated, whose shape and dtype are unknown.
        """
        logits, labels = logits[batch.real], batch.labels[batch.real]
        self._samples.update(batch.real.sum())
        self._loss.update(loss_per_sample(logits, labels, self._task))
        if self.confusion is not None:
            self.confusion.update(logits.argmax(1), labels)
        for metric in self._more.values():
            metric.update(logits if self.confusion is not None else logits.sigmoid(), labels.long())

    def compute(self) -> dict[str, float]:
        result = {"samples": self._samples.compute().item(), "loss": self._loss.compute().item()}
        if self.confusion is not None:
            counts = self.confusion.compute()
            result["accuracy"] = (counts.trace() / counts.sum()).item()
        result |= {name: metric.compute().item() for name, metric in self._more.items()}
        if "roc_auc" in result:
            # Distance between the scores of positives and negatives, were both normal with the same spread.
            result["d_prime"] = sqrt(2) * NormalDist().inv_cdf(min(max(result["roc_auc"], 1e-9), 1 - 1e-9))
        return result
