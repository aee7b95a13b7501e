"""One trial, as it runs in an actor of Ray Tune: the very training of `jobs/train_multimodal.py`."""

import io
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from rich.console import Console

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import read_run
from perceiver_dist.errors import UserError
from perceiver_dist.training.driver import run_training
from perceiver_dist.training.tracker.logged_metrics import EvaluationMetrics
from perceiver_dist.training.tracker.status import TrainingStatus


@dataclass(frozen=True)
class TrialReport:
    """How a trial stands.

    Attributes:
        step: Optimizer steps taken.
        loss: Training loss of the newest steps; None if none was taken, as by a trial that was killed after its last.
        evaluations: By step, all evaluations that a checkpoint stands behind.
        checkpoint_step: Step of the newest checkpoint, 0 if there is none.
        exit: How the training ended, "" while it runs: completed or failed.
        reason: Why it failed, one line.
    """

    step: int
    loss: float | None = None
    evaluations: dict[int, EvaluationMetrics] = field(default_factory=dict)
    checkpoint_step: int = 0
    exit: str = ""
    reason: str = ""


def run_trial(parameters: dict[str, Any]) -> None:
    """Train, and report to Ray Tune twice a second.

    An evaluation is reported once a checkpoint of its step is registered. So a search that is killed never has to
    compute again what it has decided by.

    Args:
        parameters: "folder": path or URI of the run's folder, which holds its configuration.
    """
    folder = RunFolder(parameters["folder"])
    newest = TrialReport(step=0)

    def on_status(status: TrainingStatus) -> None:
        nonlocal newest
        step, saved = status.latest.step, folder.newest_step()
        covered = {at: metrics for at, metrics in status.evaluations.items() if at <= saved}
        newest = TrialReport(step, status.latest.loss if step else None, covered, saved)
        tune.report({"report": newest})

    try:
        training = read_run(folder.read_config() or "")
        result = run_training(training, Console(file=io.StringIO()), on_status)
    except UserError as error:
        tune.report({"report": TrialReport(newest.step, exit="failed", reason=str(error))})
        return
    evaluations = dict(newest.evaluations)
    if result["exit"] == "completed":
        step = result["steps"]
        evaluations[step] = EvaluationMetrics.from_flat(step, result["metrics"])
    tune.report(
        {
            "report": TrialReport(
                result["steps"],
                newest.loss,
                evaluations,
                folder.newest_step(),
                result["exit"],
                result["error"],
            )
        }
    )
