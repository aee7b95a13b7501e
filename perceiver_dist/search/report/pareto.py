"""Pareto front of score and cost: the trials that are worth their cost."""

from collections.abc import Iterable
from typing import Literal

from perceiver_dist.search.study.search_record import Trial

CostName = Literal["flops_per_sample", "training_flops", "parameters"]
"""Field of `TrialCost` that can be traded off against the score."""


def pareto_front(trials: Iterable[Trial], cost: CostName) -> list[Trial]:
    """Return the completed trials that no other completed trial dominates.

    A trial dominates another if it costs no more, scores no less, and is better in one of the two. Trials of equal cost
    and score do not dominate each other.

    Args:
        trials: Trials in any state; only completed ones count.
        cost: The cost to trade off against the score.

    Returns:
        The front in ascending order of cost, and so of score.
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
