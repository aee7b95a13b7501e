"""Trial in an actor of Ray Tune: the same training as `jobs/train_multimodal.py`, with reports to the search."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from rich.console import Console

from perceiver_dist.checkpoint.lease import Fence
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import read_run
from perceiver_dist.errors import UserError
from perceiver_dist.training.driver import run_training
from perceiver_dist.training.tracker.logged_metrics import EvaluationMetrics
from perceiver_dist.training.tracker.status import TrainingStatus


@dataclass(frozen=True)
class TrialReport:
    """Progress of a trial.

    Attributes:
        step: Optimizer steps taken.
        loss: Training loss of the last steps; None before the first one, also of a trial that was killed after its
            last step and restarted.
        evaluations: Step -> metrics, for all evaluations up to the newest checkpoint.
        checkpoint_step: Step of the newest checkpoint; 0 if there is none.
        exit: "" while the training runs, then its `exit` from `result.json`, such as completed or failed.
        reason: Why it failed, one line; "" otherwise.
    """

    step: int
    loss: float | None = None
    evaluations: dict[int, EvaluationMetrics] = field(default_factory=dict)
    checkpoint_step: int = 0
    exit: str = ""
    reason: str = ""


def run_trial(parameters: dict[str, Any], environment: Mapping[str, str], fence: Fence) -> None:
    """Train, and report to Ray Tune twice a second.

    An evaluation is reported once a checkpoint of its step is registered, so a score behind a decision never has to be
    recomputed.

    Args:
        parameters: "folder" -> path or URI of the run folder, which holds the configuration.
        environment: The search's variables of MLflow's client, which the trial's tracker needs.
        fence: The search's right to write.
    """
    os.environ.update(environment)
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
        # The display of the training is discarded: the search shows its trials itself.
        result = run_training(training, Console(file=io.StringIO()), on_status, fence)
    except UserError as error:
        tune.report({"report": TrialReport(newest.step, exit="failed", reason=str(error))})
        return
    # The last evaluation may have come after the last status.
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
