"""Evaluation loop of a rank: every held-out sample once, with any subset of the modalities."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from perceiver_dist.data.batches import Batch
from perceiver_dist.metrics.metric_totals import MetricTotals, Scores, scores_of
from perceiver_dist.metrics.subsets import Subset, show_only
from perceiver_dist.model.precision import autocast
from pipelines.shards.source import SourceConfig


@torch.no_grad()
def evaluate(
    model: Any,
    device: torch.device,
    source: SourceConfig,
    batches: Iterable[Batch],
    subsets: Sequence[Subset],
    precision: str,
) -> Scores:
    """Evaluate one source. Every rank must call this with its own batches, the same number on each rank.

    Args:
        model: DeepSpeed engine or module, called as (arrays, present, source name) -> logits (B, classes).
        device: Device of the model.
        source: Source of the batches.
        batches: This rank's units, including padded ones.
        subsets: Modality subsets; each is evaluated on the same samples.
        precision: fp32 or bf16.

    Returns:
        Scores over the samples of all ranks, the same on every rank.
    """
    model.eval()
    totals = {subset: MetricTotals(source, device) for subset in subsets}
    for batch in batches:
        # All subsets of one batch, so that every sample is read and decoded once.
        for subset, total in totals.items():
            with autocast(device, precision):
                logits = model(batch.arrays, show_only(batch.present, subset), source.name)
            total.update(logits.float(), batch.labels, batch.valid)
    model.train()
    return scores_of(source, totals)
