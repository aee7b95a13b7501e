"""Which trials are given up: the same ones in whatever order scores come in, and those that Ray Tune would stop."""

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
class Story:
    """What happens in a search: all scores that trials would get, which of them fail, and who reports when."""

    search: SearchConfig
    scores: list[list[float]]
    lengths: list[int]
    first: list[int]
    second: list[int]

    def told(self, reports: Sequence[int]) -> Iterator[list[Trial]]:
        """Yield the trials after each report; a trial's last one says that it failed or that all is done."""
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
def stories(draw: st.DrawFn) -> Story:
    """Few different scores, so that many are equal; two orders in which the same reports come in."""
    scheduler = draw(st.sampled_from(["asha", "hyperband"]))
    search = search_with(scheduler, draw(st.integers(1, 9)), draw(st.integers(2, 4)))
    count = draw(st.integers(1, 7))
    row = st.lists(st.integers(0, 5).map(float), min_size=search.evaluations, max_size=search.evaluations)
    scores = draw(st.lists(row, min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(0, search.evaluations + 3), min_size=count, max_size=count))
    lengths = [min(length, search.evaluations) for length in lengths]
    reports = [number for number, length in enumerate(lengths) for _ in range(length + 1)]
    return Story(search, scores, lengths, draw(st.permutations(reports)), draw(st.permutations(reports)))


def brackets_of(search: SearchConfig) -> list[list[int]]:
    """The evaluations that decide in each bracket, worked out again."""
    rungs = [n for n in range(1, search.evaluations) if n in [search.reduction_factor**k for k in range(9)]]
    return [rungs[k:] for k in range(len(rungs) + 1)] if search.scheduler == "hyperband" else [rungs]


@given(story=stories())
def test_the_order_in_which_scores_come_in_does_not_matter(story: Story) -> None:
    *_, first = story.told(story.first)
    *_, second = story.told(story.second)
    assert decide(first, story.search) == decide(second, story.search)
    assert decide(first, story.search).undecided == set()


@given(story=stories())
def test_a_decision_is_never_taken_back(story: Story) -> None:
    before = Decisions()
    for trials in story.told(story.first):
        decisions = decide(trials, story.search)
        assert before.stopped.items() <= decisions.stopped.items()
        assert decisions.undecided.isdisjoint(decisions.stopped)
        before = decisions


@given(story=stories())
def test_nothing_is_decided_before_all_lower_numbers_of_the_bracket_are_known_there(story: Story) -> None:
    brackets = len(brackets_of(story.search))
    for trials in story.told(story.first):
        stopped = decide(trials, story.search).stopped
        for number, rung in stopped.items():
            for lower in trials[number % brackets : number : brackets]:
                there = len(lower.evaluations) >= rung or lower.state == "failed"
                assert there or stopped.get(lower.number, rung) < rung


@given(story=stories())
def test_a_trial_that_waits_for_a_lower_number_is_undecided_and_no_other(story: Story) -> None:
    brackets = brackets_of(story.search)
    for trials in story.told(story.first):
        decisions = decide(trials, story.search)
        waiting = set()
        for place, rungs in enumerate(brackets):
            members = [
                trial for trial in trials[place :: len(brackets)] if trial.number not in decisions.stopped
            ]
            for rung in rungs:
                there = {trial.number for trial in members if len(trial.evaluations) >= rung}
                late = [
                    trial.number for trial in members if trial.number not in there and trial.state != "failed"
                ]
                waiting |= {number for number in there if late and number > late[0]}
        assert decisions.undecided == waiting


@given(story=stories())
def test_a_search_that_stops_trials_when_it_is_told_to_decides_the_same(story: Story) -> None:
    *_, everything = story.told(story.first)
    whole = decide(everything, story.search)
    for trial in everything:
        if trial.number in whole.stopped:
            del trial.evaluations[whole.stopped[trial.number] :]
            trial.state = "stopped"
    assert decide(everything, story.search) == whole


@given(
    evaluations=st.integers(1, 20),
    factor=st.integers(2, 4),
    scores=st.lists(st.lists(st.floats(0, 1), min_size=20, max_size=20), max_size=12),
)
def test_trials_run_one_after_the_other_are_stopped_where_ray_tune_stops_them(
    evaluations: int, factor: int, scores: list[list[float]]
) -> None:
    scheduler = AsyncHyperBandScheduler("evaluation", "score", "max", evaluations, 1, factor, brackets=1)
    stopped = {}
    for number, row in enumerate(scores):
        trial: Any = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        for evaluation in range(1, evaluations):
            result = {"evaluation": evaluation, "score": row[evaluation - 1]}
            if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                stopped[number] = evaluation
                break
    trials = [trial_with(number, *row[:evaluations]) for number, row in enumerate(scores)]
    assert decide(trials, search_with("asha", evaluations, factor)).stopped == stopped


@given(story=stories())
def test_the_first_trial_is_never_stopped(story: Story) -> None:
    assert all(0 not in decide(trials, story.search).stopped for trials in story.told(story.first))


def test_one_in_three_goes_on_and_one_in_three_of_those() -> None:
    trials = [
        trial_with(number, score, score, score, score) for number, score in enumerate([0.9, 0.5, 0.7, 0.95])
    ]
    assert decide(trials, search_with(evaluations=4)) == Decisions(stopped={1: 1, 2: 1})
    trials[3] = trial_with(3, 0.95, 0.0, 0.8, 0.99)
    assert decide(trials, search_with(evaluations=4)) == Decisions(stopped={1: 1, 2: 1, 3: 3})


def test_a_trial_as_good_as_the_limit_goes_on() -> None:
    trials = [trial_with(number, 0.5) for number in range(3)]
    assert decide(trials, search_with()) == Decisions()


def test_a_trial_that_failed_early_keeps_nobody_waiting() -> None:
    trials = [trial_with(0, 0.9), trial_with(1), trial_with(2, 0.1)]
    assert decide(trials, search_with()) == Decisions(undecided={2})
    trials[1].state = "failed"
    assert decide(trials, search_with()) == Decisions(stopped={2: 1})


def test_a_trial_that_failed_later_is_compared_with() -> None:
    trials = [trial_with(0, 0.2), trial_with(1, 0.9, state="failed"), trial_with(2, 0.3)]
    assert decide(trials, search_with()) == Decisions(stopped={2: 1})


@pytest.mark.parametrize(
    ("evaluations", "brackets"), [(3, [[1], []]), (9, [[1, 3], [3], []]), (10, [[1, 3, 9], [3, 9], [9], []])]
)
def test_each_bracket_of_hyperband_begins_to_stop_later(evaluations: int, brackets: list[list[int]]) -> None:
    for place, rungs in enumerate(brackets):
        numbers = range(place, place + 3 * len(brackets), len(brackets))
        trials = [trial_with(n, *[1.0] * evaluations) for n in range(max(numbers) + 1)]
        trials[numbers[1]] = trial_with(numbers[1], *[0.0] * evaluations)
        stopped = {numbers[1]: rungs[0]} if rungs else {}
        assert decide(trials, search_with("hyperband", evaluations)).stopped == stopped


def test_trials_are_not_compared_with_those_of_another_bracket() -> None:
    trials = [trial_with(number, score, score) for number, score in enumerate([0.1, 0.9, 0.2, 0.8, 0.3])]
    assert decide(trials, search_with("hyperband")) == Decisions()
    assert decide(trials, search_with("asha")).stopped == {2: 1, 4: 1}


@pytest.mark.parametrize("scheduler", ["none", "pbt"])
def test_without_halving_nothing_is_stopped(scheduler: str) -> None:
    trials = [trial_with(0, 0.9, 0.9), trial_with(1), trial_with(2, 0.1, 0.1)]
    assert decide(trials, search_with(scheduler)) == Decisions()


@pytest.mark.parametrize(("evaluations", "stopped"), [(1, {}), (2, {1: 1}), (3, {1: 1}), (4, {1: 1, 2: 3})])
def test_nothing_is_stopped_at_the_last_evaluation(evaluations: int, stopped: dict[int, int]) -> None:
    scores = [[0.5] * 4, [0.1] * 4, [0.6, 0.6, 0.1, 0.1]]
    trials = [trial_with(number, *row[:evaluations]) for number, row in enumerate(scores)]
    assert decide(trials, search_with(evaluations=evaluations)).stopped == stopped
