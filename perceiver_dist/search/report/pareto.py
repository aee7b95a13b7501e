"""Which trials are worth their cost: the Pareto front of score and cost."""

from collections.abc import Iterable
from typing import Literal

from perceiver_dist.search.study.search_record import Trial

CostName = Literal["flops_per_sample", "training_flops", "parameters"]
"""A field of `TrialCost` that a score can be held against."""


def pareto_front(trials: Iterable[Trial], cost: CostName) -> list[Trial]:
    """Return the completed trials that no other one dominates.

    A trial dominates another if it costs no more and scores no less, and is better in one of the two. Trials with
    the same cost and score stand together.

    Args:
        trials: Trials in any state; those that were not completed count for nothing.
        cost: What a trial's score is held against.

    Returns:
        The front, the cheapest first; so scores rise along it.
    """
    points = [
        (getattr(trial.cost, cost), -trial.score, trial)
        for trial in trials
        if trial.state == "completed" and trial.score is not None
    ]
    front = [
        (price, error, trial)
        for price, error, trial in points
        if not any(
            other <= price and other_error <= error and (other, other_error) != (price, error)
            for other, other_error, _ in points
        )
    ]
    return [trial for _, _, trial in sorted(front, key=lambda point: (*point[:2], point[2].number))]
