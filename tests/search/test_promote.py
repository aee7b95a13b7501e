"""The best trial's model in MLflow's registry: what a program loads from there."""

from pathlib import Path

import pytest
import records
import torch
from mlflow.artifacts import download_artifacts
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from perceiver_dist.errors import UserError
from perceiver_dist.search.promote import promote_best
from perceiver_dist.training.checkpoint import PARTS, Span, file_header, write_rank_file
from perceiver_dist.training.manifest import Manifest, Progress, write_manifest


def test_the_best_trials_weights_are_registered_whole(tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "step-00000010")
    header = file_header([(part, "head", Span(0, 6)) for part in PARTS], {"head": (2, 3)})
    file = write_rank_file(f"{checkpoint}/rank-00000-of-00001.safetensors", header, torch.arange(18.0))
    write_manifest(checkpoint, Manifest(Progress(10, 320, 1, 2, 10), (file,)))
    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(store)
    experiment = client.create_experiment("search", artifact_location=str(tmp_path / "artifacts"))
    record = records.record_of_search()
    assert record.best is not None
    record.best.mlflow_run_id = client.create_run(experiment).info.run_id
    record.best.checkpoint = checkpoint
    assert promote_best(record, "seed: 0\n", store, "perceiver", "champion") == "1"
    source = client.get_model_version_by_alias("perceiver", "champion").source
    assert source is not None
    folder = Path(download_artifacts(source, tracking_uri=store, dst_path=str(tmp_path / "loaded")))
    assert (folder / "config.yaml").read_text() == "seed: 0\n"
    weights = load_file(folder / "weights.safetensors")
    assert torch.equal(weights["head"], torch.arange(6.0).view(2, 3))


def test_without_a_completed_trial_there_is_nothing_to_register() -> None:
    with pytest.raises(UserError, match="--promote: no trial was completed"):
        promote_best(records.record_of_search(0), "", "sqlite://", "perceiver", "champion")
