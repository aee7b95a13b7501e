"""Importances: known causes are found, and the result is empty if there is too little evidence."""

import logging

import optuna
import pytest
from records import record_of_search

from perceiver_dist.search.report.importance import importance
from perceiver_dist.search.study.search_record import SearchRecord, Trial, TrialEvaluation


def search_of(values: list[dict[str, object]], scores: list[list[float]]) -> SearchRecord:
    """Return a search of trials with these values and scores per evaluation."""
    cost = record_of_search(1).trials[0].cost
    return SearchRecord(
        trials=[
            Trial(
                number,
                chosen,
                cost,
                evaluations=[TrialEvaluation(i + 1, 1, s, {}) for i, s in enumerate(found)],
            )
            for number, (chosen, found) in enumerate(zip(values, scores, strict=True))
        ]
    )


def grid(count: int) -> list[dict[str, object]]:
    return [{"a": i % 4, "b": ["x", "y"][i // 4 % 2]} for i in range(count)]


@pytest.mark.parametrize("cause", ["a", "b"])
def test_the_option_with_the_largest_effect_comes_first(cause: str) -> None:
    values = grid(12)
    effect = {"a": 0.1, "b": 0.01} if cause == "a" else {"a": 0.01, "b": 0.1}
    scores = [[0.5 + effect["a"] * int(str(v["a"])) / 3 + effect["b"] * (v["b"] == "x")] for v in values]
    shares = importance(search_of(values, scores))
    assert next(iter(shares)) == cause
    assert shares[cause] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_trials_are_compared_at_the_first_evaluation_that_all_have() -> None:
    values = grid(8)
    early = [0.1 * int(str(chosen["a"])) for chosen in values]
    later = {"x": [0.9], "y": [0.2, 0.9]}
    late = [[score, *later[str(chosen["b"])]] for score, chosen in zip(early, values, strict=True)]
    assert importance(search_of(values, late)) == importance(search_of(values, [[score] for score in early]))


def test_population_based_training_uses_the_values_before_the_first_change() -> None:
    scores = [[0.1 * int(str(chosen["a"]))] for chosen in grid(8)]
    record = search_of(grid(8), scores)
    for trial in record.trials[:3]:
        trial.history = [{"evaluation": 1, "from_trial": 7, "values_before": trial.values}]
        trial.values = {"a": 9, "b": "z"}
    assert importance(record) == importance(search_of(grid(8), scores))


def test_importances_are_deterministic() -> None:
    shares = importance(record_of_search())
    assert next(iter(shares)) == "optim.learning_rate"
    assert shares == importance(record_of_search())


def test_an_option_that_does_not_vary_is_left_out() -> None:
    values = [{**chosen, "c": 3} for chosen in grid(8)]
    assert set(importance(search_of(values, [[0.1 * i] for i in range(8)]))) == {"a", "b"}


@pytest.mark.parametrize(
    "record",
    [
        SearchRecord(),
        search_of(grid(3), [[0.1], [0.2], [0.3]]),
        search_of(grid(5), [[0.1], [0.2], [0.3], [], []]),
        search_of([{"a": 1}] * 5, [[0.1 * i] for i in range(5)]),
        search_of(grid(5), [[0.5]] * 5),
    ],
    ids=["no trial", "three trials", "three scores", "nothing varies", "equal scores"],
)
def test_too_little_evidence_gives_no_importances(record: SearchRecord) -> None:
    assert importance(record) == {}


def test_optuna_logs_nothing_and_keeps_its_verbosity(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    optuna.logging.set_verbosity(logging.INFO)
    optuna.logging.enable_propagation()
    importance(record_of_search())
    optuna.logging.disable_propagation()
    assert caplog.messages == []
    assert [str(warning.message) for warning in recwarn] == []
    assert optuna.logging.get_verbosity() == logging.INFO
