"""Controller of a search: handling of trial reports, with real MLflow in a local file and no training."""

from pathlib import Path

import pytest
from rich.console import Console
from small_training import search_run

from perceiver_dist.search.controller import SearchController
from perceiver_dist.search.report.search_console import SearchDisplay
from perceiver_dist.search.search_tracking import SearchTracking
from perceiver_dist.search.strategy.candidates import Candidates
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial, load_record
from perceiver_dist.search.trial import TrialReport
from perceiver_dist.training.prepare import resolve
from perceiver_dist.training.tracker.logged_metrics import EvaluationMetrics


def config_in(folder: Path) -> SearchRunConfig:
    """Return a search of three trials that are evaluated after 33, 66 and 99 steps."""
    config = search_run(space={"model.latents": [4, 8, 16]}, trials=3, sampler="grid", baseline=False)
    storage = type(config.storage)(str(folder), "unused")
    resolved = resolve(SearchRunConfig(**{**vars(config), "storage": storage}))
    assert isinstance(resolved, SearchRunConfig)
    return resolved


def controller_of(folder: Path, record: SearchRecord | None = None) -> SearchController:
    """Return the controller of a new or resumed search without running trials."""
    config = config_in(folder)
    record = record or SearchRecord(options=vars(config.search))
    return SearchController(
        config,
        record,
        Candidates(config.search, config.training, "cpu"),
        str(folder / "search"),
        SearchTracking(config, record, str(folder / "search")),
        SearchDisplay(Console(quiet=True)),
    )


def evaluations_of(*scores: float) -> dict[int, EvaluationMetrics]:
    """Return evaluations after 33, 66, ... steps, in each of which both sources have the same score."""
    return {
        33 * number: EvaluationMetrics(
            33 * number, {"squares": {"accuracy": score}, "tones": {"mean_average_precision": score}}
        )
        for number, score in enumerate(scores, 1)
    }


def next_of(search: SearchController) -> Trial:
    trial = search.next_trial()
    assert trial is not None
    return trial


def test_a_trained_trial_completes_when_all_lower_numbers_have_reached_its_rungs(tmp_path: Path) -> None:
    search = controller_of(tmp_path)
    first, second = next_of(search), next_of(search)
    assert not search.handle_report(
        second, TrialReport(99, 0.1, evaluations_of(0.5, 0.6, 0.7), 99, "completed")
    )
    assert second.state == "running"
    assert not search.handle_report(first, TrialReport(40, 0.1, evaluations_of(0.4), 33))
    assert (first.state, second.state) == ("running", "completed")


def test_a_trial_is_stopped_at_the_deciding_evaluation_even_if_it_improved_later(tmp_path: Path) -> None:
    search = controller_of(tmp_path)
    first, second = next_of(search), next_of(search)
    search.handle_report(second, TrialReport(70, 0.1, evaluations_of(0.3, 0.9), 66))
    assert not search.handle_report(first, TrialReport(40, 0.1, evaluations_of(0.4), 33))
    assert second.state == "stopped"
    assert second.score == pytest.approx(0.3)
    assert search.handle_report(second, TrialReport(71, 0.1, {}, 66)), (
        "a decided trial stops at its next report"
    )


def test_a_trial_killed_after_its_last_step_completes_without_a_loss(tmp_path: Path) -> None:
    search = controller_of(tmp_path)
    trial = next_of(search)
    search.handle_report(trial, TrialReport(99, None, evaluations_of(0.5, 0.6, 0.7), 99, "completed"))
    assert trial.state == "completed"
    assert trial.score == pytest.approx(0.7)


def test_a_loss_that_is_not_finite_fails_the_trial(tmp_path: Path) -> None:
    search = controller_of(tmp_path)
    trial = next_of(search)
    assert search.handle_report(trial, TrialReport(20, float("nan"), {}, 0))
    assert (trial.state, trial.reason) == ("failed", "the training loss is nan at step 20")


def test_an_undefined_score_fails_the_trial(tmp_path: Path) -> None:
    search = controller_of(tmp_path)
    trial = next_of(search)
    tones = {"mean_average_precision": float("nan"), "samples": 4.0, "classes_with_positives": 0.0}
    undefined = EvaluationMetrics(33, {"squares": {"accuracy": 0.5, "samples": 4.0}, "tones": tones})
    assert search.handle_report(trial, TrialReport(40, 0.1, {33: undefined}, 33))
    assert trial.state == "failed"
    assert trial.reason == (
        "search.metric is mean; at step 33, source 'tones': mean_average_precision cannot be computed: no class has a "
        "positive among the 4 held-out samples; check their labels"
    )
    assert not trial.evaluations


def test_a_search_killed_while_it_opens_runs_resumes_the_same_runs(tmp_path: Path) -> None:
    search = controller_of(tmp_path)
    first = next_of(search)
    record = load_record(str(tmp_path / "search" / "search.json"))
    assert record is not None
    record.trials[0].mlflow_run_id = record.mlflow_run_id = ""
    resumed = controller_of(tmp_path, record)
    assert next_of(resumed).mlflow_run_id == first.mlflow_run_id
    assert resumed.record.mlflow_run_id == search.record.mlflow_run_id


def test_a_trial_is_saved_before_its_run_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = controller_of(tmp_path)
    saved = []

    def open_trial(*_: object) -> None:
        record = load_record(str(tmp_path / "search" / "search.json"))
        saved.extend([] if record is None else record.trials)

    monkeypatch.setattr(SearchTracking, "open_trial", open_trial)
    trial = next_of(search)
    assert [trial_on_record.values for trial_on_record in saved] == [trial.values]


def test_a_resumed_search_starts_its_unfinished_trials_first(tmp_path: Path) -> None:
    search = controller_of(tmp_path)
    first, second = next_of(search), next_of(search)
    search.handle_lost_trial(first, "its node is gone")
    resumed = controller_of(tmp_path, load_record(str(tmp_path / "search" / "search.json")))
    assert next_of(resumed).number == second.number
    assert next_of(resumed).values == {"model.latents": 16}
    assert resumed.next_trial() is None
    assert resumed.exhausted
