"""A training run whose MLflow server hangs, then dies: the run completes, and no record is lost."""

import json
from io import StringIO
from pathlib import Path

import pytest
import small_run
from mlflow.tracking import MlflowClient
from rich.console import Console
from served_mlflow import ServedMlflow

from perceiver_dist.tracking import sender
from perceiver_dist.training.driver import run_training
from perceiver_dist.training.tracker.status import TrainingStatus


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_completes_without_its_server_and_a_restart_delivers_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run.write_data(tmp_path / "data")
    text = StringIO()
    screen = Console(file=text)
    with ServedMlflow(tmp_path) as server:
        config = small_run.small_config(tmp_path / "data", tmp_path / "runs", "offline", uri=server.address)

        # Until the first step the server hangs; from then on it is dead.
        def disturb(status: TrainingStatus) -> None:
            (server.kill if status.latest.step else server.pause)()

        result = run_training(config, screen, disturb)
        assert result["exit"] == "completed"
        assert f"MLflow at {server.address} is unavailable: " in text.getvalue()
        server.kill()
        server.start()
        monkeypatch.setattr(sender, "SECONDS_WITHOUT_PROGRESS", 60.0)
        second_screen = StringIO()
        second_result = run_training(config, Console(file=second_screen))
        client = MlflowClient(server.address)
        history = client.get_metric_history(result["mlflow_run_id"], "train/loss")
        files = {file.path for file in client.list_artifacts(result["mlflow_run_id"])}
        status = client.get_run(result["mlflow_run_id"]).info.status
    assert "starting 2 workers" not in second_screen.getvalue()
    assert second_result == json.loads((tmp_path / "runs" / "offline" / "result.json").read_text())
    entries = [
        json.loads(line)
        for line in (tmp_path / "runs" / "offline" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [(entry["step"], entry["train/loss"]) for entry in entries if "train/loss" in entry]
    assert [(point.step, point.value) for point in history] == losses
    assert len(losses) == small_run.STEPS
    assert files >= {"config.yaml", "result.json", "confusion_squares.png", "learning_curves.png"}
    assert status == "FINISHED"
