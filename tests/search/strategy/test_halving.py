"""Successive halving: decisions do not depend on the order of reports, and equal those of Ray Tune in sequence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from perceiver_dist.search.strategy.halving import Decisions, decide
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import Trial, TrialCost, TrialEvaluation

COST = TrialCost(parameters=1, flops_per_sample=1.0, memory_per_rank=1, steps=1, training_flops=1.0)


def trial_with(number: int, *scores: float, state: Any = "running") -> Trial:
    evaluations = [TrialEvaluation(place + 1, place + 1, score, {}) for place, score in enumerate(scores)]
    return Trial(number, {}, COST, state=state, evaluations=evaluations)


def search_with(scheduler: Any = "asha", evaluations: int = 3, factor: int = 3) -> SearchConfig:
    return SearchConfig(scheduler=scheduler, evaluations=evaluations, reduction_factor=factor)


@dataclass
class Simulation:
    """Simulated search: the scores that trials would get, when they fail, and two orders of the same reports."""

    search: SearchConfig
    scores: list[list[float]]
    lengths: list[int]
    first: list[int]
    second: list[int]

    def replay(self, reports: Sequence[int]) -> Iterator[list[Trial]]:
        """Yield the trials after each report; the last report of a trial is that it failed or is complete."""
        reported = [0] * len(self.scores)
        for number in reports:
            reported[number] += 1
            started = max(n for n, count in enumerate(reported) if count) + 1
            yield [self._trial(n, reported[n]) for n in range(started)]

    def _trial(self, number: int, reports: int) -> Trial:
        length = self.lengths[number]
        failed = reports > length < self.search.evaluations
        return trial_with(
            number, *self.scores[number][:reports][:length], state="failed" if failed else "running"
        )


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    """Generate searches with few distinct scores, so that many are equal."""
    scheduler = draw(st.sampled_from(["asha", "hyperband"]))
    search = search_with(scheduler, draw(st.integers(1, 9)), draw(st.integers(2, 4)))
    count = draw(st.integers(1, 7))
    row = st.lists(st.integers(0, 5).map(float), min_size=search.evaluations, max_size=search.evaluations)
    scores = draw(st.lists(row, min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(0, search.evaluations + 3), min_size=count, max_size=count))
    lengths = [min(length, search.evaluations) for length in lengths]
    reports = [number for number, length in enumerate(lengths) for _ in range(length + 1)]
    return Simulation(search, scores, lengths, draw(st.permutations(reports)), draw(st.permutations(reports)))


def brackets_of(search: SearchConfig) -> list[list[int]]:
    """Return the rungs of each bracket, computed independently."""
    rungs = [n for n in range(1, search.evaluations) if n in [search.reduction_factor**k for k in range(9)]]
    return [rungs[k:] for k in range(len(rungs) + 1)] if search.scheduler == "hyperband" else [rungs]


@given(simulation=simulations())
def test_decisions_do_not_depend_on_the_order_of_reports(simulation: Simulation) -> None:
    *_, first = simulation.replay(simulation.first)
    *_, second = simulation.replay(simulation.second)
    assert decide(first, simulation.search) == decide(second, simulation.search)
    assert decide(first, simulation.search).undecided == set()


@given(simulation=simulations())
def test_decisions_are_final(simulation: Simulation) -> None:
    before = Decisions()
    for trials in simulation.replay(simulation.first):
        decisions = decide(trials, simulation.search)
        assert before.stopped.items() <= decisions.stopped.items()
        assert decisions.undecided.isdisjoint(decisions.stopped)
        before = decisions


@given(simulation=simulations())
def test_a_trial_is_decided_only_after_all_lower_numbers_of_its_bracket(simulation: Simulation) -> None:
    brackets = len(brackets_of(simulation.search))
    for trials in simulation.replay(simulation.first):
        stopped = decide(trials, simulation.search).stopped
        for number, rung in stopped.items():
            for lower in trials[number % brackets : number : brackets]:
                reached = len(lower.evaluations) >= rung or lower.state == "failed"
                assert reached or stopped.get(lower.number, rung) < rung


@given(simulation=simulations())
def test_trials_that_wait_for_a_lower_number_are_undecided(simulation: Simulation) -> None:
    brackets = brackets_of(simulation.search)
    for trials in simulation.replay(simulation.first):
        decisions = decide(trials, simulation.search)
        waiting = set()
        for place, rungs in enumerate(brackets):
            members = [
                trial for trial in trials[place :: len(brackets)] if trial.number not in decisions.stopped
            ]
            for rung in rungs:
                reached = {trial.number for trial in members if len(trial.evaluations) >= rung}
                missing = [
                    trial.number
                    for trial in members
                    if trial.number not in reached and trial.state != "failed"
                ]
                waiting |= {number for number in reached if missing and number > missing[0]}
        assert decisions.undecided == waiting


@given(simulation=simulations())
def test_stopping_the_decided_trials_changes_no_decision(simulation: Simulation) -> None:
    *_, trials = simulation.replay(simulation.first)
    decided = decide(trials, simulation.search)
    for trial in trials:
        if trial.number in decided.stopped:
            del trial.evaluations[decided.stopped[trial.number] :]
            trial.state = "stopped"
    assert decide(trials, simulation.search) == decided


@given(
    evaluations=st.integers(1, 20),
    factor=st.integers(2, 4),
    scores=st.lists(st.lists(st.floats(0, 1), min_size=20, max_size=20), max_size=12),
)
def test_sequential_trials_are_stopped_where_ray_tune_stops_them(
    evaluations: int, factor: int, scores: list[list[float]]
) -> None:
    scheduler = AsyncHyperBandScheduler("evaluation", "score", "max", evaluations, 1, factor, brackets=1)
    controller: Any = None  # the scheduler does not use it
    stopped = {}
    for number, row in enumerate(scores):
        trial: Any = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(controller, trial)
        for evaluation in range(1, evaluations):
            result = {"evaluation": evaluation, "score": row[evaluation - 1]}
            if scheduler.on_trial_result(controller, trial, result) == TrialScheduler.STOP:
                stopped[number] = evaluation
                break
    trials = [trial_with(number, *row[:evaluations]) for number, row in enumerate(scores)]
    assert decide(trials, search_with("asha", evaluations, factor)).stopped == stopped


@given(simulation=simulations())
def test_the_first_trial_is_never_stopped(simulation: Simulation) -> None:
    assert all(
        0 not in decide(trials, simulation.search).stopped for trials in simulation.replay(simulation.first)
    )


def test_one_in_three_continues_at_each_rung() -> None:
    trials = [
        trial_with(number, score, score, score, score) for number, score in enumerate([0.9, 0.5, 0.7, 0.95])
    ]
    assert decide(trials, search_with(evaluations=4)) == Decisions(stopped={1: 1, 2: 1})
    trials[3] = trial_with(3, 0.95, 0.0, 0.8, 0.99)
    assert decide(trials, search_with(evaluations=4)) == Decisions(stopped={1: 1, 2: 1, 3: 3})


def test_a_trial_equal_to_the_cutoff_continues() -> None:
    trials = [trial_with(number, 0.5) for number in range(3)]
    assert decide(trials, search_with()) == Decisions()


def test_no_trial_waits_for_a_failed_one() -> None:
    trials = [trial_with(0, 0.9), trial_with(1), trial_with(2, 0.1)]
    assert decide(trials, search_with()) == Decisions(undecided={2})
    trials[1].state = "failed"
    assert decide(trials, search_with()) == Decisions(stopped={2: 1})


def test_a_trial_that_failed_after_a_rung_counts_at_it() -> None:
    trials = [trial_with(0, 0.2), trial_with(1, 0.9, state="failed"), trial_with(2, 0.3)]
    assert decide(trials, search_with()) == Decisions(stopped={2: 1})


@pytest.mark.parametrize(
    ("evaluations", "brackets"), [(3, [[1], []]), (9, [[1, 3], [3], []]), (10, [[1, 3, 9], [3, 9], [9], []])]
)
def test_each_hyperband_bracket_starts_stopping_later(evaluations: int, brackets: list[list[int]]) -> None:
    for place, rungs in enumerate(brackets):
        numbers = range(place, place + 3 * len(brackets), len(brackets))
        trials = [trial_with(n, *[1.0] * evaluations) for n in range(max(numbers) + 1)]
        trials[numbers[1]] = trial_with(numbers[1], *[0.0] * evaluations)
        stopped = {numbers[1]: rungs[0]} if rungs else {}
        assert decide(trials, search_with("hyperband", evaluations)).stopped == stopped


def test_trials_are_compared_within_their_bracket() -> None:
    trials = [trial_with(number, score, score) for number, score in enumerate([0.1, 0.9, 0.2, 0.8, 0.3])]
    assert decide(trials, search_with("hyperband")) == Decisions()
    assert decide(trials, search_with("asha")).stopped == {2: 1, 4: 1}


@pytest.mark.parametrize("scheduler", ["none", "pbt"])
def test_other_schedulers_stop_nothing(scheduler: str) -> None:
    trials = [trial_with(0, 0.9, 0.9), trial_with(1), trial_with(2, 0.1, 0.1)]
    assert decide(trials, search_with(scheduler)) == Decisions()


@pytest.mark.parametrize(("evaluations", "stopped"), [(1, {}), (2, {1: 1}), (3, {1: 1}), (4, {1: 1, 2: 3})])
def test_nothing_is_stopped_at_the_last_evaluation(evaluations: int, stopped: dict[int, int]) -> None:
    scores = [[0.5] * 4, [0.1] * 4, [0.6, 0.6, 0.1, 0.1]]
    trials = [trial_with(number, *row[:evaluations]) for number, row in enumerate(scores)]
    assert decide(trials, search_with(evaluations=evaluations)).stopped == stopped
