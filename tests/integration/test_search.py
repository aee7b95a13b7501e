"""A search job that is killed once and resumed, with real Ray Tune, Ray Train, DeepSpeed and MLflow."""

import re
from typing import Any

import mlflow
import pytest
import small_run
import small_search

from perceiver_dist.config.command_line import read_run
from perceiver_dist.search.study.search_config import SearchConfig

pytestmark = pytest.mark.runs

IMPOSSIBLE = 10**12
"""A number of latents that fits no machine's memory."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Kill a search once its first trial has ended, resume it, and return what it left."""
    storage = tmp_path_factory.mktemp("search")
    small_run.write_data(storage / "data")
    search = SearchConfig(
        space={"model.latents": [8, IMPOSSIBLE]}, trials=2, sampler="grid", baseline=False, name="shapes"
    )
    config = small_search.search_config(storage / "data", storage, search)
    folder = storage / "shapes"
    small_search.kill_when(
        small_search.start(config, storage),
        lambda: any(trial["state"] != "running" for trial in small_search.trials(folder)),
    )
    before = small_search.trials(folder)
    assert small_search.start(config, storage).wait() == 0
    return {
        "folder": folder,
        "before": before,
        "after": small_search.trials(folder),
        "mlflow": mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db"),
        "screen": (storage / "output.txt").read_text(),
    }


def test_a_finished_trial_is_not_run_again(searched: dict[str, Any]) -> None:
    ended = [trial for trial in searched["before"] if trial["state"] != "running"]
    assert ended
    assert [searched["after"][trial["number"]] for trial in ended] == ended


def test_a_trial_that_runs_out_of_memory_fails_and_the_other_completes(searched: dict[str, Any]) -> None:
    assert [trial["state"] for trial in searched["after"]] == ["completed", "failed"]
    assert "is out of memory while" in searched["after"][1]["reason"]
    assert "lower train.micro_batch or the model's sizes" in searched["after"][1]["reason"]


def test_every_trial_is_a_child_run_with_parameters_cost_curves_and_state(searched: dict[str, Any]) -> None:
    client = searched["mlflow"]
    experiment = client.get_experiment_by_name("perceiver").experiment_id
    runs = client.search_runs(experiment, "tags.kind = 'trial'", order_by=["attributes.start_time"])
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs}
    [parent] = client.search_runs(experiment, "tags.kind = 'search'")
    assert parents == {parent.info.run_id}
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED"]
    assert [run.data.tags["state"] for run in runs] == ["completed", "failed"]
    assert "out of memory" in runs[1].data.tags["reason"]
    assert [run.data.params["model.latents"] for run in runs] == ["8", str(IMPOSSIBLE)]
    assert int(runs[0].data.metrics["cost/parameters"]) == searched["after"][0]["cost"]["parameters"]
    steps = [point.step for point in client.get_metric_history(runs[0].info.run_id, "score")]
    assert steps == [10, 20, 30]


def test_the_parent_run_holds_the_summary(searched: dict[str, Any]) -> None:
    client = searched["mlflow"]
    experiment = client.get_experiment_by_name("perceiver").experiment_id
    [parent] = client.search_runs(experiment, "tags.kind = 'search'")
    files = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "best.yaml", "search.json", "parallel_coordinates.png"} <= files
    assert parent.info.status == "FINISHED"


def test_the_configuration_of_the_best_trial_can_be_trained(searched: dict[str, Any]) -> None:
    config = read_run((searched["folder"] / "best.yaml").read_text())
    [best] = [trial for trial in searched["after"] if trial["state"] == "completed"]
    assert config.model.latents == best["values"]["model.latents"]
    assert (config.train.steps, config.storage.run_name) == (30, None)


def test_the_output_reports_each_trial_once_and_the_best_one(searched: dict[str, Any]) -> None:
    lines = searched["screen"].splitlines()
    ended = [line.split()[0] for line in lines if re.match(r"trial-\d+ (completed|stopped|failed)[: ]", line)]
    repeated = [name for name in ended if ended.count(name) > 2]
    assert not repeated, "a trial is reported once when it ends and once in the table"
    assert "is best: score" in searched["screen"]
    assert "Traceback" not in searched["screen"]
