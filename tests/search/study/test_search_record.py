"""Record of a search: lossless reading and writing, and the best trial."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from records import record_of_search
from small_training import as_json

from perceiver_dist.search.study.search_record import SearchRecord, Trial, TrialEvaluation, load_record


def with_best(record: SearchRecord, number: int, score: float, flops: float) -> None:
    """Set score and cost of a completed trial."""
    trial = record.trials[number]
    assert trial.state == "completed"
    trial.evaluations[-1] = replace(trial.evaluations[-1], score=score)
    trial.cost = replace(trial.cost, training_flops=flops)


def test_a_record_is_read_back_unchanged(tmp_path: Path) -> None:
    record = record_of_search()
    record.drawn = 17
    record.mlflow_run_id = "f" * 32
    record.trials[2].checkpoint = "s3://bucket/trial-002/step-00001500"
    record.trials[2].history = [{"evaluation": 1, "from_trial": 0, "values_before": {"optim.beta1": 0.9}}]
    record.save(str(tmp_path / "search.json"))
    assert load_record(str(tmp_path / "search.json")) == record


def test_numbers_are_read_back_exactly(tmp_path: Path) -> None:
    record = record_of_search(1)
    record.trials[0].values = {"optim.learning_rate": 0.1 + 0.2, "model.latents": 3, "optim.clip_norm": 1.0}
    record.save(str(tmp_path / "search.json"))
    read = load_record(str(tmp_path / "search.json"))
    assert read is not None
    assert repr(read.trials[0].values) == repr(record.trials[0].values)


def test_a_missing_file_gives_none(tmp_path: Path) -> None:
    assert load_record(str(tmp_path / "search.json")) is None


@pytest.mark.parametrize(("trials", "best"), [(0, None), (2, "trial-000"), (12, "trial-006")])
def test_the_file_begins_with_the_name_of_the_best_trial(
    tmp_path: Path, trials: int, best: str | None
) -> None:
    record = record_of_search(trials)
    record.save(str(tmp_path / "search.json"))
    content = json.loads((tmp_path / "search.json").read_text())
    assert next(iter(content)) == "best"
    assert content.pop("best") == best
    assert content == as_json(record)


def test_the_best_trial_is_a_completed_one() -> None:
    record = record_of_search()
    for trial in record.trials:
        if trial.state in ("stopped", "running"):
            trial.evaluations.append(TrialEvaluation(3, 1500, 0.99, {}))
    assert {trial.state for trial in record.completed} == {"completed"}
    assert record.best in record.completed
    assert record.best is max(record.completed, key=lambda trial: trial.evaluations[-1].score)


def test_ties_go_to_the_cheaper_and_then_to_the_earlier_trial() -> None:
    record = record_of_search()
    for number, flops in ((2, 5.0), (6, 4.0), (8, 4.0)):
        with_best(record, number, 0.97, flops)
    assert record.best is record.trials[6]
    with_best(record, 2, 0.98, 5.0)
    assert record.best is record.trials[2]


def test_a_trial_without_a_score_is_not_completed() -> None:
    cost = record_of_search(1).trials[0].cost
    record = SearchRecord(trials=[Trial(0, {}, cost, state="completed")])
    assert (record.completed, record.best) == ([], None)


def test_the_baseline_is_trial_0() -> None:
    record = record_of_search(3)
    assert record.baseline is record.trials[0]
    assert record_of_search(3, baseline=False).baseline is None
    assert record_of_search(0).baseline is None


def test_score_and_flops_of_a_trial_follow_its_newest_evaluation_and_step() -> None:
    stopped, failed = record_of_search().trials[5], record_of_search().trials[3]
    assert stopped.score == stopped.evaluations[1].score != stopped.evaluations[0].score
    assert stopped.training_flops == pytest.approx(stopped.cost.training_flops * 2 / 3)
    assert failed.score is None
    assert (stopped.name, Trial(1234, {}, stopped.cost).name) == ("trial-005", "trial-1234")
