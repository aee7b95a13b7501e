"""Population based training: which trials continue from which others, and with which values."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.search.strategy.population import begin_generation, folder_name, next_generation_is_due
from perceiver_dist.search.study.search_record import SearchRecord, Trial, TrialCost, TrialEvaluation
from perceiver_dist.search.study.space import Choices, Dimension, Range

SPACE: dict[str, Dimension] = {
    "optim.learning_rate": Range(1e-4, 1e-2, log=True, step=None, integer=False),
    "optim.warmup_steps": Range(0, 100, log=False, step=10, integer=True),
    "optim.beta2": Choices((0.9, 0.99, 0.999)),
}
COST = TrialCost(parameters=10, flops_per_sample=1.0, memory_per_rank=10, steps=40, training_flops=40.0)


def population(scores: list[float], baseline: bool = False) -> SearchRecord:
    """Return a population at the end of its first generation."""
    values: dict[str, Any] = {"optim.learning_rate": 1e-3, "optim.warmup_steps": 50, "optim.beta2": 0.99}
    trials = [
        Trial(
            number,
            {**values, "optim.warmup_steps": 10 * (number % 10)},
            COST,
            evaluations=[TrialEvaluation(1, 10, score, {})],
            checkpoint=f"trial-{number:03d}/step-00000010",
        )
        for number, score in enumerate(scores)
    ]
    return SearchRecord({"baseline": baseline}, trials)


def test_the_worst_quarter_continues_from_the_best_quarter() -> None:
    record = population([0.5, 0.1, 0.6, 0.9, 0.4, 0.2, 0.8, 0.7])
    begin_generation(record, SPACE, seed=0)
    moved = {trial.number: trial.history[0]["from_trial"] for trial in record.trials if trial.history}
    assert set(moved) == {1, 5}
    assert set(moved.values()) <= {3, 6}
    donor = record.trials[moved[1]]
    assert record.trials[1].start_from == donor.checkpoint
    assert record.trials[1].history[0]["values_before"]["optim.warmup_steps"] == 10


def test_the_baseline_keeps_its_values() -> None:
    record = population([0.0, 0.5, 0.6, 0.7], baseline=True)
    begin_generation(record, SPACE, seed=0)
    assert not any(trial.history for trial in record.trials)


def test_failed_trials_are_neither_copied_nor_replaced() -> None:
    record = population([0.9, 0.1, 0.5, 0.6, 0.7, 0.65])
    record.trials[0].state = record.trials[1].state = "failed"
    begin_generation(record, SPACE, seed=0)
    assert [trial.number for trial in record.trials if trial.history] == [2]
    assert record.trials[2].history[0]["from_trial"] == 4


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), min_size=4, max_size=12))
def test_values_stay_in_the_space_and_are_deterministic(seed: int, scores: list[float]) -> None:
    record = population(scores)
    again = copy.deepcopy(record)
    begin_generation(record, SPACE, seed)
    begin_generation(again, SPACE, seed)
    assert again == record
    for trial in record.trials:
        assert 1e-4 <= trial.values["optim.learning_rate"] <= 1e-2
        assert trial.values["optim.warmup_steps"] in range(0, 101, 10)
        assert trial.values["optim.beta2"] in (0.9, 0.99, 0.999)


def test_a_generation_begins_when_all_running_trials_have_completed_the_previous_one() -> None:
    record = population([0.1, 0.2, 0.3, 0.4])
    assert next_generation_is_due(record, generations=2)
    assert not next_generation_is_due(record, generations=1)
    record.trials[2].evaluations.clear()
    assert not next_generation_is_due(record, generations=2)
    record.trials[2].state = "failed"
    assert next_generation_is_due(record, generations=2)


def test_a_trial_that_continues_from_another_has_a_new_folder() -> None:
    record = population([0.1, 0.2, 0.3, 0.4])
    begin_generation(record, SPACE, seed=0)
    assert [folder_name(trial) for trial in record.trials] == [
        "trial-000-1",
        "trial-001",
        "trial-002",
        "trial-003",
    ]
