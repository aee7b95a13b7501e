"""Best evaluation of a run by `train.best_metric`, and how long ago it was: part of every checkpoint.

It is a function of the evaluations so far, so that a resumed run chooses its best checkpoint, and stops early, as an
undisturbed one does.
"""

from dataclasses import dataclass, replace
from math import isfinite

from perceiver_dist.config.best_metric import higher_is_better


@dataclass(frozen=True)
class BestScore:
    """The best of the evaluations so far.

    Attributes:
        metric: The metric, <source>/<name>.
        step: Optimizer steps taken at the best evaluation; 0 if none has had a value yet.
        value: Value of the metric there; None if none has had one.
        since: Number of evaluations after it.
    """

    metric: str
    step: int = 0
    value: float | None = None
    since: int = 0

    def after(self, step: int, value: float) -> "BestScore":
        """Return the best after one more evaluation. An equal value, or one that is not finite, is no improvement.

        Args:
            step: Optimizer steps taken.
            value: Value of the metric.
        """
        sign = 1 if higher_is_better(self.metric) else -1
        if isfinite(value) and (self.value is None or sign * value > sign * self.value):
            return BestScore(self.metric, step, value)
        return replace(self, since=self.since + 1)


def resumed_score(metric: str | None, stored: BestScore | None) -> BestScore | None:
    """Return the best score with which a run begins or resumes; None without a metric.

    Args:
        metric: `train.best_metric`. If it is another one than before, the best is looked for anew.
        stored: That of the checkpoint.
    """
    if metric is None:
        return None
    return stored if stored is not None and stored.metric == metric else BestScore(metric)
