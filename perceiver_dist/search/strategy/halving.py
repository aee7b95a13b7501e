"""Which trials are given up: successive halving whose decisions do not depend on which trial was faster.

Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934) looks at a trial at evaluations r = 1, eta, eta^2,
... and lets it go on if it is among the best 1/eta of the trials that were there before it. "Before" is meant in time,
as Ray Tune does it: two runs of one search, or one run that was killed, decide differently when trials race each other.

Here "before" means: with a lower number. A trial is decided about at r as soon as every trial with a lower number was
there or ended without getting there. Until then it trains on; what it does after an evaluation at which it turns out
to be stopped does not count. So decisions are a function of the scores alone, the same as those of a search that runs
one trial at a time, for any number of trials at once and after any number of kills. The price is the training that a
stopped trial did while it waited for a slower one.

Hyperband (Li et al. 2017, arXiv 1603.06560) deals the trials to brackets. Bracket b decides at r = eta^b and later
only, in case early scores mislead; each trial is compared with those of its bracket.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import Trial


@dataclass
class Decisions:
    """What is known about the trials.

    Attributes:
        stopped: Number of the trial -> number of the evaluation after which it is stopped.
        undecided: Numbers of the trials that are at a rung, and wait for a trial with a lower number.
    """

    stopped: dict[int, int] = field(default_factory=dict)
    undecided: set[int] = field(default_factory=set)


def decide(trials: Sequence[Trial], search: SearchConfig) -> Decisions:
    """Decide which trials are to be stopped, as far as it is known yet.

    Args:
        trials: All trials in the order of their numbers.
        search: Scheduler, evaluations and reduction factor.
    """
    decisions = Decisions()
    brackets = _brackets(search)
    for place, rungs in enumerate(brackets):
        members = [trial for trial in trials if trial.number % len(brackets) == place]
        for rung in rungs:
            members = _survivors(members, rung, search.reduction_factor, decisions)
    return decisions


def _brackets(search: SearchConfig) -> list[list[int]]:
    """The evaluations at which each bracket decides; a decision at the last evaluation would save nothing."""
    if search.scheduler not in ("asha", "hyperband"):
        return []
    rungs = []
    rung = 1
    while rung < search.evaluations:
        rungs.append(rung)
        rung *= search.reduction_factor
    count = len(rungs) + 1 if search.scheduler == "hyperband" else 1
    return [rungs[skipped:] for skipped in range(count)]


def _survivors(
    members: Sequence[Trial], rung: int, reduction_factor: int, decisions: Decisions
) -> list[Trial]:
    """Return the members that go on after a rung; those after the first that is not there yet are undecided."""
    survivors: list[Trial] = []
    scores: list[float] = []
    for place, trial in enumerate(members):
        score = next((look.score for look in trial.evaluations if look.number == rung), None)
        if score is None and trial.state == "failed":
            continue
        if score is None:
            there = [other for other in members[place:] if len(other.evaluations) >= rung]
            decisions.undecided.update(other.number for other in there)
            break
        if scores and score < np.percentile(scores, 100 * (1 - 1 / reduction_factor)):
            decisions.stopped[trial.number] = rung
        else:
            survivors.append(trial)
        scores.append(score)
    return survivors
