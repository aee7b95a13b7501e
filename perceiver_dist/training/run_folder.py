"""What lies in a run's folder, and by which name."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from perceiver_dist.config import RunConfig
from perceiver_dist.errors import UserError
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


def check_continues(config: RunConfig, folder: str) -> None:
    """Make sure that a run that goes on learns from the samples that it would have learned from.

    Which samples a step learns from is a function of some options; with others, steps would silently repeat and skip
    samples. Everything else (steps, workers, ZeRO stage, learning rate, ...) may change between two starts.

    Args:
        config: The resolved configuration of this start.
        folder: The run's folder; nothing is checked if it holds no checkpoint.

    Raises:
        UserError: An option that decides the order of samples has another value than before.
    """
    before = read_text(join(folder, CONFIG)) if newest_step(folder) else None
    if before is None:
        return
    old, new = _order_options(yaml.safe_load(before)), _order_options(asdict(config))
    for name, value in new.items():
        if value != old.get(name):
            raise UserError(
                f"{name} is {value}, but run '{config.storage.run_name}' was started with {old.get(name)}; it decides "
                "the order of samples: keep it, or start another storage.run_name"
            )


def _order_options(tree: Mapping[str, Any]) -> dict[str, Any]:
    train, data = tree["train"], tree["data"]
    options = {f"train.{name}": train[name] for name in ("seed", "lanes", "micro_batch")}
    options["data.chunk_size"] = data["chunk_size"]
    options["sources"] = [source["name"] for source in tree["sources"]]
    for source in tree["sources"]:
        for name in ("train_shards", "weight"):
            options[f"sources.{source['name']}.{name}"] = source[name]
    return options
