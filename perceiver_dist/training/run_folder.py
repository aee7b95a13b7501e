"""What lies in a run's folder, and by which name."""

import json

from pipelines.storage import join, read_text

CONFIG = "config.yaml"
RESULT = "result.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
MLFLOW_RUN_ID = "mlflow_run_id.txt"
_SNAPSHOT = "checkpoint_manager_snapshot.json"


def checkpoint_name(steps: int) -> str:
    """Return the folder name of the checkpoint after a number of optimizer steps.

    Args:
        steps: Optimizer steps taken.
    """
    return f"step-{steps:08d}"


def newest_step(folder: str) -> int:
    """Return the step of the checkpoint that Ray Train restores next, 0 if there is none.

    Args:
        folder: Path or URI of the run's folder, in which Ray Train keeps a list of the checkpoints it registered.
    """
    snapshot = json.loads(read_text(join(folder, _SNAPSHOT)) or "{}")
    newest = snapshot.get("latest_checkpoint_result")
    return int(newest["checkpoint_dir_name"].rpartition("-")[2]) if newest else 0
