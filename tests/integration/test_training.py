"""Training runs with real Ray, DeepSpeed, MLflow and files: sample order, losses, resume, records, failures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import pytest
import small_run
import torch
import yaml
from rich.console import Console

from perceiver_dist.checkpoint.format import read_weights
from perceiver_dist.checkpoint.manifest import find_damage
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import read_run, to_yaml
from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.run_config import DeepSpeedConfig, WorkerRange
from perceiver_dist.errors import UserError
from perceiver_dist.training.driver import run_training

GOLDEN = Path(__file__).parent / "golden.json"
"""Sample order and losses of the small run. After a change that is meant to alter them, regenerate the file with
`WRITE_GOLDEN=1 .venv/bin/pytest tests/integration`."""

COMPARED = 30
"""Steps whose samples are compared between numbers of workers: five epochs of each source, and 30 tasks of units."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    small_run.write_data(folder)
    return folder


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def trained(data: Path, storage: Path, request: pytest.FixtureRequest) -> Callable[[int], dict[str, Any]]:
    """Return a function from a number of workers to the finished run with that many; each is trained once.

    The run with two workers takes all steps; others are compared with it, for which their first steps suffice.
    """
    request.getfixturevalue("ray_cluster")
    runs: dict[int, dict[str, Any]] = {}

    def train(workers: int) -> dict[str, Any]:
        if workers not in runs:
            stop_at = None if workers == 2 else COMPARED
            config = small_run.small_config(
                data, storage, f"workers{workers}", num_workers=workers, stop_at=stop_at
            )
            screen = StringIO()
            result = run_training(config, Console(file=screen))
            runs[workers] = {**result, "screen": screen.getvalue(), "folder": storage / f"workers{workers}"}
        return runs[workers]

    return train


def samples(folder: Path) -> list[list[str]]:
    """Return the sorted keys of each step's samples, relative to the folder of the shards."""
    steps = [json.loads(line)["units"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [sorted("/".join(key.split("/")[-3:]) for keys in step.values() for key in keys) for step in steps]


def test_a_run_completes_and_writes_its_result(trained: Callable[[int], dict[str, Any]]) -> None:
    result = json.loads((trained(2)["folder"] / "result.json").read_text())
    assert (result["exit"], result["steps"]) == ("completed", small_run.STEPS)
    assert result["samples_seen"] == small_run.STEPS * 4 * 8
    assert (result["world_size"], result["zero_stage"]) == (2, 2)
    assert 0 <= result["data_wait_fraction"] <= 1
    assert result["samples_per_second"] > 0


def test_every_held_out_sample_is_counted_once(trained: Callable[[int], dict[str, Any]]) -> None:
    metrics = trained(2)["metrics"]
    assert (metrics["squares/samples"], metrics["tones/samples"]) == (21, 21)


def test_the_squares_are_learned(trained: Callable[[int], dict[str, Any]]) -> None:
    assert trained(2)["metrics"]["squares/accuracy"] > 0.5


def test_the_output_is_progress_and_results_only(trained: Callable[[int], dict[str, Any]]) -> None:
    lines = trained(2)["screen"].splitlines()
    assert lines[0] == "run workers2: preparing data"
    assert any(line.startswith("step 100/100  loss ") for line in lines)
    assert len(lines) < 18


def test_the_stored_configuration_reads_back_unchanged(trained: Callable[[int], dict[str, Any]]) -> None:
    file = trained(2)["folder"] / "config.yaml"
    config = read_run(file.read_text())
    assert to_yaml(config) == file.read_text()
    steps = yaml.safe_load(file.read_text())["train"]["steps"]
    assert steps == small_run.STEPS


def test_mlflow_has_parameters_metrics_and_figures(
    trained: Callable[[int], dict[str, Any]], storage: Path
) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db")
    run = client.get_run(trained(2)["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "100"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == small_run.STEPS
    files = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert files >= {"config.yaml", "result.json", "confusion_squares.png", "learning_curves.png"}


@pytest.mark.parametrize("workers", [1, pytest.param(4, marks=pytest.mark.runs)])
def test_samples_and_losses_do_not_depend_on_the_number_of_workers(
    trained: Callable[[int], dict[str, Any]], workers: int
) -> None:
    assert samples(trained(workers)["folder"]) == samples(trained(2)["folder"])[:COMPARED]
    # Sums in another order differ in the last bits, and training amplifies the difference. So only early steps are
    # compared, and losses of the squares, which are soon below 0.001, with an absolute tolerance of 1e-6.
    early = slice(0, 20)
    expected = pytest.approx(small_run.losses(trained(2)["folder"])[early], rel=1e-4, abs=1e-6)
    assert small_run.losses(trained(workers)["folder"])[early] == expected


@pytest.mark.long
def test_three_workers_share_four_lanes(
    trained: Callable[[int], dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    config = small_run.small_config(data, tmp_path, "uneven", num_workers=WorkerRange(3, 3), stop_at=20)
    result = run_training(config, Console(file=StringIO()))
    assert (result["world_size"], result["metrics"]["squares/samples"]) == (3, 21)
    assert samples(tmp_path / "uneven") == samples(trained(2)["folder"])[:20]
    expected = pytest.approx(small_run.losses(trained(2)["folder"])[:20], rel=1e-4, abs=1e-6)
    assert small_run.losses(tmp_path / "uneven") == expected


def test_order_and_losses_equal_the_golden_values(trained: Callable[[int], dict[str, Any]]) -> None:
    folder = trained(2)["folder"]
    found = {"first_steps": samples(folder)[:3], "losses": small_run.losses(folder)[:20]}
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert found["first_steps"] == golden["first_steps"]
    # Other CPUs sum in another order; a change of the computation makes a far larger difference.
    assert found["losses"] == pytest.approx(golden["losses"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("lanes", 8), ("micro_batch", 4)])
def test_a_run_does_not_resume_in_another_order(
    trained: Callable[[int], dict[str, Any]], data: Path, storage: Path, name: str, value: int
) -> None:
    trained(2)
    options: dict[str, Any] = {name: value}
    config = small_run.small_config(data, storage, "workers2", **options)
    with pytest.raises(UserError, match=f"train.{name} is {value}, but run 'workers2' was started with"):
        run_training(config, Console(file=StringIO()))


def test_a_run_that_starts_from_the_checkpoint_of_another_and_stops_early_has_its_losses(
    trained: Callable[[int], dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    checkpoint = trained(2)["folder"] / "step-00000090"
    config = small_run.small_config(data, tmp_path, "branch", start_from=str(checkpoint), stop_at=95)
    result = run_training(config, Console(file=StringIO()))
    assert (result["exit"], result["steps"], result["metrics"]["squares/samples"]) == ("completed", 95, 21)
    assert small_run.losses(tmp_path / "branch") == small_run.losses(trained(2)["folder"])[90:95]
    assert samples(tmp_path / "branch") == samples(trained(2)["folder"])[90:95]


@pytest.mark.runs
def test_fine_tuning_starts_from_the_weights_of_a_trained_model(
    trained: Callable[[int], dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    folder = trained(2)["folder"]
    config = small_run.small_config(data, tmp_path, "tuned", fine_tune=str(folder), steps=4)
    config = replace(
        config, optim=replace(config.optim, frozen=["latents", "cross_attends", "latent_blocks"])
    )
    result = run_training(config, Console(file=StringIO()))
    assert (result["exit"], result["steps"]) == ("completed", 4)
    assert max(small_run.losses(tmp_path / "tuned")) < small_run.losses(folder)[0] / 2
    before, after = (read_weights(str(path)) for path in (folder / "step-00000100", result["checkpoint"]))
    changed = {
        name.partition(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])
    }
    assert changed <= {"heads", "encodings"}
    assert "heads" in changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"start_from": "runs/a"},
            "train.start_from is runs/a, which is not a checkpoint; name a folder such as",
        ),
        (
            {"start_from": "checkpoint", "stop_at": 90},
            "is not before the run's last step 90; raise train.steps or",
        ),
    ],
)
def test_an_unusable_checkpoint_to_start_from_is_rejected(
    trained: Callable[[int], dict[str, Any]],
    data: Path,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    if options["start_from"] == "checkpoint":
        options = {**options, "start_from": str(trained(2)["folder"] / "step-00000090")}
    with pytest.raises(UserError, match=message):
        run_training(small_run.small_config(data, tmp_path, "branch", **options), Console(file=StringIO()))


def test_a_damaged_checkpoint_to_start_from_is_rejected_without_a_retry(
    trained: Callable[[int], dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    start = tmp_path / "other" / "step-00000090"
    shutil.copytree(trained(2)["folder"] / start.name, start)
    [file] = start.glob("rank-00000-of-00002-*.safetensors")
    os.truncate(file, 1024)
    with pytest.raises(
        UserError, match=rf"which is damaged \({file.name}: 1,024 bytes of [\d,]+\); use another checkpoint"
    ):
        run_training(
            small_run.small_config(data, tmp_path, "branch", start_from=str(start)), Console(file=StringIO())
        )


@pytest.mark.long
def test_a_killed_driver_resumes_and_ends_with_the_same_losses(
    trained: Callable[[int], dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    undisturbed, folder = trained(2)["folder"], tmp_path / "killed"
    command = job_command(data, tmp_path, "killed")
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as first:
        wait_for_checkpoint(folder, first)
        os.killpg(first.pid, signal.SIGKILL)
    assert not (folder / "result.json").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert small_run.losses(folder) == small_run.losses(undisturbed)
    assert samples(folder)[-10:] == samples(undisturbed)[-10:]


@pytest.mark.runs
def test_losses_logged_after_a_kill_are_over_as_many_steps_as_any_other(data: Path, tmp_path: Path) -> None:
    # It is killed long before its last step, however late a busy machine notices the first checkpoint. Checkpoints of
    # every tenth step lie between the logged steps 7, 14, 21, ...
    options: dict[str, Any] = {"log_every": 7, "steps": 10_000}
    command = job_command(data, tmp_path, "killed", **options)
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as first:
        wait_for_checkpoint(tmp_path / "killed", first)
        os.killpg(first.pid, signal.SIGKILL)
    options["stop_at"] = stop_at = RunFolder(str(tmp_path / "killed")).newest_step() + 18
    subprocess.run(job_command(data, tmp_path, "killed", **options), check=True, stdout=subprocess.DEVNULL)
    run_training(small_run.small_config(data, tmp_path, "undisturbed", **options), Console(file=StringIO()))
    found = logged_losses(tmp_path / "killed")
    assert [entry["step"] for entry in found] == [*range(7, stop_at, 7), stop_at]
    assert found == logged_losses(tmp_path / "undisturbed")


@pytest.mark.runs
def test_a_terminated_run_saves_and_resumes_with_the_same_losses(
    trained: Callable[[int], dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    undisturbed, folder = trained(2)["folder"], tmp_path / "stopped"
    command = job_command(data, tmp_path, "stopped")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        wait_for_checkpoint(folder, first)
        first.send_signal(signal.SIGTERM)
        screen, _ = first.communicate()
    result = json.loads((folder / "result.json").read_text())
    assert (first.returncode, result["exit"]) == (143, "preempted")
    assert RunFolder(str(folder)).newest_step() == result["steps"] < small_run.STEPS
    assert f"preempted at step {result['steps']}: --storage.run_name stopped resumes from" in screen
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert small_run.losses(folder) == small_run.losses(undisturbed)


@pytest.mark.long
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_gives_the_same_losses(
    trained: Callable[[int], dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    undisturbed, folder = trained(2)["folder"], tmp_path / "damaged"
    run_training(small_run.small_config(data, tmp_path, "damaged", stop_at=30), Console(file=StringIO()))
    [file] = (folder / "step-00000030").glob("rank-00001-of-00002-*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    screen = StringIO()
    result = run_training(small_run.small_config(data, tmp_path, "damaged", stop_at=40), Console(file=screen))
    assert (result["exit"], result["checkpoint"]) == ("completed", str(folder / "step-00000040"))
    line = f"checkpoint step-00000030 is damaged ({file.name}: other content than was written); resuming from step 20"
    assert line in screen.getvalue().splitlines()
    assert small_run.losses(folder) == small_run.losses(undisturbed)[:40]
    assert samples(folder)[-20:] == samples(undisturbed)[20:40]
    assert find_damage(str(folder / "step-00000030")) == ""


@pytest.mark.runs
@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_fail_at_every_start_end_the_run_with_their_error(data: Path, tmp_path: Path) -> None:
    config = small_run.small_config(data, tmp_path, "failing", max_failures=1)
    config = replace(config, deepspeed=DeepSpeedConfig(overrides={"zero_optimization": {"stage": 9}}))
    result = run_training(config, Console(file=StringIO()))
    assert (result["exit"], result["steps"]) == ("failed", 0)
    assert result["error"].startswith("step 0: rank ")
    assert " raised while starting: ValidationError: " in result["error"]
    assert result["error"].endswith(", for the second time: it is the code, not the machine")


@pytest.mark.runs
@pytest.mark.usefixtures("ray_cluster")
def test_steps_that_are_not_finite_are_reported_and_end_the_run(data: Path, tmp_path: Path) -> None:
    config = small_run.small_config(data, tmp_path, "diverging", max_skipped_steps=3)
    config = replace(config, optim=OptimConfig(learning_rate=1e30, warmup_steps=0))
    screen = StringIO()
    with pytest.raises(
        UserError, match=r"3 steps were skipped, train.max_skipped_steps is 3; step \d+ is skipped: "
    ):
        run_training(config, Console(file=screen, width=200))
    assert re.search(r"--replay (squares|tones)/\d+ shows what is in it", screen.getvalue())


def logged_losses(folder: Path) -> list[dict[str, float]]:
    """Return the step and the losses, in all and by source, of every logged step of a run."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in entry.items()
            if name == "step" or name.endswith(("train/loss", "train_loss"))
        }
        for entry in entries
        if "train/loss" in entry
    ]


def job_command(data: Path, storage: Path, run_name: str, **train: Any) -> list[str]:
    """Return the command that starts or resumes the small run as a job, with these options of training."""
    file = storage / f"{run_name}.yaml"
    file.write_text(to_yaml(small_run.small_config(data, storage, run_name, **train)))
    return [sys.executable, "jobs/train_multimodal.py", "--config", str(file)]


def wait_for_checkpoint(folder: Path, run: subprocess.Popen[Any]) -> None:
    """Return as soon as the run has written a checkpoint; fail if it ends first."""
    while RunFolder(str(folder)).newest_step() == 0:
        assert run.poll() is None, "the run ended before it was killed"
        threading.Event().wait(0.02)
