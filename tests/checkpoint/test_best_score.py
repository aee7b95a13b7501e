"""The best checkpoint of a run: which one it is, that it is kept and found, and that a resumed run knows of it."""

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import written_checkpoints as written
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.checkpoint.best_score import BestScore, resumed_score
from perceiver_dist.checkpoint.manifest import read_manifest
from perceiver_dist.checkpoint.retention import CheckpointList
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig, TrainConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import SourceConfig

PETS = SourceConfig("pets", "x.tar", ["image"], 3, eval_shards="y.tar")
CONFIG = RunConfig(
    ModelConfig(image=ImageInput(4, 4, 1)),
    [PETS],
    train=TrainConfig(steps=50, eval_every=10, best_metric="pets/accuracy", patience=2),
)


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 1 / 3, float("nan"), float("inf")]), max_size=9),
    metric=st.sampled_from(["pets/accuracy", "pets/loss", "pets/roc_auc"]),
)
def test_the_best_is_the_first_of_the_best_values(values: list[float], metric: str) -> None:
    best = BestScore(metric)
    for number, value in enumerate(values, 1):
        best = best.after(10 * number, value)
    finite = [value for value in values if isfinite(value)]
    if finite:
        expected = (min if metric.endswith("loss") else max)(finite)
        first = values.index(expected) + 1
        assert best == BestScore(metric, 10 * first, expected, len(values) - first)
    else:
        assert best == BestScore(metric, 0, None, len(values))


def test_another_metric_is_looked_for_anew() -> None:
    stored = BestScore("pets/accuracy", 10, 0.5, 1)
    assert resumed_score("pets/accuracy", stored) is stored
    assert resumed_score("pets/loss", stored) == BestScore("pets/loss")
    assert resumed_score("pets/loss", None) == BestScore("pets/loss")
    assert resumed_score(None, stored) is None


class Run:
    """A run whose checkpoints are written as by its ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.list = CheckpointList(RunFolder(str(folder)), 1, None, lambda: None, lambda _: None)
        self.start = self.list.choose_starting_point()
        self.list.workers_started()

    def save(self, step: int, best: BestScore) -> None:
        written.save(self.list, self.folder, step, best=best)

    def steps(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir() if file.is_dir())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose second of four evaluations is the best, and which keeps one newest checkpoint."""
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    run = Run(tmp_path)
    best = BestScore("pets/accuracy")
    for step, value in ((10, 0.1), (20, 1 / 3), (30, 0.2), (40, 0.3)):
        best = best.after(step, value)
        run.save(step, best)
    return run


def test_the_best_checkpoint_is_kept_beside_the_newest(run: Run) -> None:
    assert run.steps() == ["step-00000020", "step-00000040"]
    run.save(50, BestScore("pets/accuracy", 50, 0.5))
    assert run.steps() == ["step-00000050"]


def test_a_best_checkpoint_that_could_not_be_written_leaves_the_best_one_before_it(run: Run) -> None:
    best = BestScore("pets/accuracy", 50, 0.5)  # of step 50, which was not stored
    run.save(60, best.after(60, 0.4))
    assert run.steps() == ["step-00000020", "step-00000060"]
    with pytest.raises(
        UserError, match=r"step-00000050: the best .* name another one, such as .*step-00000020$"
    ):
        find_model(str(run.folder))
    run.save(70, best.after(70, 0.6))
    assert run.steps() == ["step-00000070"]


def test_a_resumed_run_knows_the_best_to_the_last_bit(run: Run) -> None:
    resumed = Run(run.folder)
    assert resumed.start.best == BestScore("pets/accuracy", 20, 1 / 3, 2)
    other = CheckpointList(
        RunFolder(str(run.folder / "other")),
        1,
        str(run.folder / "step-00000040"),
        lambda: None,
        lambda _: None,
    )
    # The best checkpoint of the other run is not one of this run.
    assert other.choose_starting_point().best is None


def test_a_run_stands_for_its_best_checkpoint(run: Run) -> None:
    assert find_model(str(run.folder)).steps == 20
    assert find_model(str(run.folder / "step-00000040")).steps == 40


def test_an_evaluation_after_the_last_checkpoint_may_be_the_best(run: Run) -> None:
    result = run.folder / "result.json"
    result.write_text(json.dumps({"steps": 40, "best": {"step": 40}, "metrics": {}}))
    assert find_model(str(run.folder)).steps == 40
    # That of an earlier end of the run says nothing about it.
    result.write_text(json.dumps({"steps": 30, "best": {"step": 30}, "metrics": {}}))
    assert find_model(str(run.folder)).steps == 20


def test_a_best_checkpoint_that_is_gone_is_an_error(run: Run) -> None:
    (run.folder / "step-00000020" / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"step-00000020: the best checkpoint .* is not there; name another one"
    ):
        find_model(str(run.folder))


def test_checkpoints_without_it_are_those_of_older_versions(tmp_path: Path) -> None:
    run = Run(tmp_path)
    written.save(run.list, tmp_path, 10)
    assert '"best"' not in (tmp_path / "step-00000010" / "manifest.json").read_text()
    assert read_manifest(str(tmp_path / "step-00000010")).progress.best is None


def test_a_run_that_stopped_early_is_finished_until_its_options_change(run: Run) -> None:
    result = {
        "exit": "completed",
        "steps": 40,
        "stopped_early": "pets/accuracy has not improved",
        "metrics": {},
    }
    (run.folder / "result.json").write_text(json.dumps(result))
    folder = RunFolder(str(run.folder))
    assert folder.finished_result(CONFIG) == result
    assert folder.finished_result(replace(CONFIG, train=replace(CONFIG.train, patience=3))) is None
    (run.folder / "result.json").write_text(json.dumps(result | {"stopped_early": ""}))
    assert folder.finished_result(CONFIG) is None
