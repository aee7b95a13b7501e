"""Early stopping by successive halving (ASHA and Hyperband) that is deterministic.

Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934) compares trials at evaluations r = 1, eta, eta^2, ...
and continues a trial if it is among the best 1/eta of the trials that reached r before it.

In Ray Tune's `AsyncHyperBandScheduler`, "before" refers to time. Trials race each other, so two runs of one search stop
different trials. Its brackets are drawn with an unseeded random generator, and Ray Tune does not save the scheduler,
so a resumed search has lost the scores to compare with. `HyperBandScheduler` pauses trials until their bracket is
complete, and a distributed training that was paused has to start its workers again.

Here "before" means with a lower number. A trial is decided at r as soon as every trial with a lower number has reached
r, or has ended without reaching it. Until then it continues to train. If it is stopped at r after all, its later
evaluations do not count. So decisions are a function of the scores alone: they are the same for any number of
concurrent trials and after any number of restarts, and for one trial at a time they are those of Ray Tune, as a test
checks. The price is the training that stopped trials did while they waited for slower ones.

Hyperband (Li et al. 2017, arXiv 1603.06560) assigns the trials to brackets, in case early scores mislead. Bracket b
decides at r = eta^b and later only, and compares a trial with trials of its own bracket.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import Trial


@dataclass
class Decisions:
    """Decisions that follow from the scores so far.

    Attributes:
        stopped: Number of a trial -> number of the evaluation after which it is stopped.
        undecided: Numbers of the trials that have reached a rung and wait for a trial with a lower number.
    """

    stopped: dict[int, int] = field(default_factory=dict)
    undecided: set[int] = field(default_factory=set)


def decide(trials: Sequence[Trial], search: SearchConfig) -> Decisions:
    """Decide which trials to stop, as far as the scores so far allow.

    Args:
        trials: All trials in the order of their numbers.
        search: Options of the search: scheduler, evaluations and reduction factor.
    """
    decisions = Decisions()
    brackets = _brackets(search)
    for bracket, rungs in enumerate(brackets):
        members = [trial for trial in trials if trial.number % len(brackets) == bracket]
        for rung in rungs:
            members = _survivors(members, rung, search.reduction_factor, decisions)
    return decisions


def _brackets(search: SearchConfig) -> list[list[int]]:
    """Return the rungs of each bracket: the evaluations at which it decides."""
    if search.scheduler not in ("asha", "hyperband"):
        return []
    rungs = []
    rung = 1
    # Stopping a trial at its last evaluation would save nothing.
    while rung < search.evaluations:
        rungs.append(rung)
        rung *= search.reduction_factor
    count = len(rungs) + 1 if search.scheduler == "hyperband" else 1
    return [rungs[skipped:] for skipped in range(count)]


def _survivors(
    members: Sequence[Trial], rung: int, reduction_factor: int, decisions: Decisions
) -> list[Trial]:
    """Return the members that continue after a rung; decide nothing after the first that has not reached it."""
    survivors: list[Trial] = []
    scores: list[float] = []
    for index, trial in enumerate(members):
        score = next(
            (evaluation.score for evaluation in trial.evaluations if evaluation.number == rung), None
        )
        if score is None and trial.state == "failed":
            continue
        if score is None:
            waiting = [other for other in members[index:] if len(other.evaluations) >= rung]
            decisions.undecided.update(other.number for other in waiting)
            break
        # Ray Tune's cutoff. A trial as good as the cutoff continues, and so does the first one.
        if scores and score < np.percentile(scores, 100 * (1 - 1 / reduction_factor)):
            decisions.stopped[trial.number] = rung
        else:
            survivors.append(trial)
        scores.append(score)
    return survivors
