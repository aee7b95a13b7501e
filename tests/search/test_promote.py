"""Registration of the best trial's model in the MLflow model registry."""

import sys
from pathlib import Path

import mlflow.pyfunc
import models_to_export as models
import pandas as pd
import pytest
import records
from mlflow.tracking import MlflowClient

import perceiver_dist
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.errors import UserError
from perceiver_dist.search.promote import promote_best
from perceiver_dist.search.study.search_record import SearchRecord


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tracking URI of an MLflow database with an experiment."""
    folder = tmp_path_factory.mktemp("mlflow")
    address = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(address).create_experiment("search", artifact_location=str(folder / "artifacts"))
    return address


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the best trial."""
    return models.write_run(tmp_path_factory.mktemp("search") / "trial-004")


def record_of(run: Path, run_id: str) -> SearchRecord:
    record = records.record_of_search()
    assert record.best is not None
    record.best.mlflow_run_id, record.best.checkpoint = run_id, str(run / f"step-{models.STEPS:08d}")
    return record


def test_the_registered_model_is_loaded_by_name_and_alias(
    run: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("search")
    assert experiment is not None
    record = record_of(run, client.create_run(experiment.experiment_id).info.run_id)
    assert promote_best(record, to_yaml(models.CONFIG), store, "perceiver", "champion") == "1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow adds the code that is saved with the model
    model = mlflow.pyfunc.load_model("models:/perceiver@champion")
    picture, _ = models.write_sample(tmp_path, 0)
    table = pd.DataFrame({"name": [str(picture)], "content": [picture.read_bytes()]})
    answers = model.predict(table, params={"source": "pictures"})
    expected = perceiver_dist.load(run).predict([picture], "pictures")[0]
    assert answers["label"][0] == expected.top(1)[0].label
    assert answers["probabilities"][0] == pytest.approx(expected.probabilities.tolist(), abs=1e-6)


def test_promoting_without_a_completed_trial_fails() -> None:
    with pytest.raises(UserError, match="--promote: no trial was completed"):
        promote_best(records.record_of_search(0), "", "sqlite://", "perceiver", "champion")


def test_a_failed_registration_gives_the_reason_in_one_line(run: Path, store: str, tmp_path: Path) -> None:
    config = to_yaml(models.CONFIG)
    with pytest.raises(UserError, match="the MLflow run of its training is not known"):
        promote_best(record_of(run, ""), config, store, "perceiver", "champion")
    elsewhere = f"sqlite:///{tmp_path}/other.db"
    with pytest.raises(
        UserError, match=r"MLflow's database .*other\.db, where the training was tracked, does not exist"
    ):
        promote_best(record_of(run, "0" * 32), config, elsewhere, "perceiver", "champion")
    with pytest.raises(UserError, match=r"did not register the model: .*not found"):
        promote_best(record_of(run, "0" * 32), config, store, "perceiver", "champion")
