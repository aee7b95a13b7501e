"""Choice of the best checkpoint and early stopping on a rank: the same decisions on all of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed

from perceiver_dist.checkpoint.best_score import BestScore, resumed_score
from perceiver_dist.config.run_config import TrainConfig
from perceiver_dist.metrics.metric_totals import Scores


class EarlyStop:
    """Best evaluation so far, and whether it is so long ago that the run ends. Every rank has one.

    Args:
        train: Metric and patience.
        stored: The best evaluation when the checkpoint was saved from which the rank starts.
        group: A gloo group of all ranks.

    Attributes:
        best: The best evaluation so far; None without `train.best_metric`.
    """

    def __init__(self, train: TrainConfig, stored: BestScore | None, group: Any) -> None:
        self.best = resumed_score(train.best_metric, stored)
        self._patience = train.patience
        self._group = group

    def evaluated(self, step: int, scores: Mapping[str, Scores]) -> None:
        """Take an evaluation into account. Every rank must call this.

        Args:
            step: Optimizer steps taken.
            scores: Source name -> scores.
        """
        if self.best is None:
            return
        source, _, name = self.best.metric.partition("/")
        # Ranks have the same scores. They take rank 0's all the same, because one that went on alone would wait for the
        # others without end.
        value = torch.tensor([scores[source].metrics[name]], dtype=torch.float64)
        distributed.broadcast(value, src=0, group=self._group)
        self.best = self.best.after(step, value.item())

    @property
    def reason(self) -> str:
        """Why the run ends now, one line; "" if it continues."""
        best, patience = self.best, self._patience
        if best is None or patience is None or best.since < patience:
            return ""
        evaluations = f"{best.since} evaluation{'s' * (best.since > 1)}"
        if best.value is None:
            return f"{best.metric} has no value after {evaluations} (train.patience {patience})"
        return (
            f"{best.metric} has not improved for {evaluations} (train.patience {patience}); "
            f"the best is {best.value:.4g} at step {best.step}"
        )
