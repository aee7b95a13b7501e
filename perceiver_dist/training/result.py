"""Result of a run: the content of result.json."""

from typing import Any

from perceiver_dist.checkpoint.manifest import read_manifest
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.training.prepare import PreparedRun
from perceiver_dist.training.tracker.status import TrainingStatus


def run_result(
    run: PreparedRun, exit_: str, error: str, status: TrainingStatus, run_id: str, *, ended_with_ray: bool
) -> dict[str, Any]:
    """Return the content of result.json.

    Args:
        run: The run.
        exit_: How it ended: completed, preempted, interrupted or failed.
        error: One line on an error; "" for none.
        status: The tracker's last status.
        run_id: Id of the MLflow run.
        ended_with_ray: Whether its Ray has ended, so that logged steps are lost that no checkpoint has.

    Raises:
        UserError: The manifest of the newest checkpoint is damaged.
    """
    train, saved = run.config.train, run.folder.newest_step()
    # Not every step is logged.
    steps = saved if ended_with_ray else max(status.latest.step, saved)
    return {
        "exit": exit_,
        "error": error,
        "stopped_early": status.stopped_early,
        "steps": steps,
        "samples_seen": steps * train.global_batch,
        "world_size": status.world_size,
        "zero_stage": run.config.deepspeed.zero_stage,
        "metrics": status.scores,
        "best": _best(run.folder, status, saved) if train.best_metric else None,
        "samples_per_second": status.mean_samples_per_second,
        "data_wait_fraction": status.mean_data_wait_fraction,
        "restarts": status.restarts,
        "quarantined": status.quarantined,
        "mlflow_run_id": run_id,
        "checkpoint": run.folder.checkpoint(saved) if saved else None,
    }


def _best(folder: RunFolder, status: TrainingStatus, saved: int) -> dict[str, Any] | None:
    """Return the best evaluation with its metrics and checkpoint; None if there is none.

    Raises:
        UserError: The manifest of the newest checkpoint is damaged.
    """
    best = status.best or (read_manifest(folder.checkpoint(saved)).progress.best if saved else None)
    if best is None or not best.step:
        return None
    evaluation = status.evaluations.get(best.step)
    return {
        "metric": best.metric,
        "value": best.value,
        "step": best.step,
        "metrics": evaluation.flat() if evaluation else {},
        "checkpoint": folder.checkpoint(best.step) if folder.is_checkpoint(best.step) else None,
    }
