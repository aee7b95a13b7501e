"""What lies in a run's folder, and by which name."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from perceiver_dist.command_line import to_yaml
from perceiver_dist.config import RunConfig
from perceiver_dist.errors import UserError
from pipelines.storage import join, read_text

CONFIG = "config.yaml"
RESULT = "result.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
MLFLOW_RUN_ID = "mlflow_run_id.txt"
IDENTITY = "identity.txt"
OUTBOX = "outbox.sqlite"
_SNAPSHOT = "checkpoint_manager_snapshot.json"


def checkpoint_name(steps: int) -> str:
    """Return the folder name of the checkpoint after a number of optimizer steps.

    Args:
        steps: Optimizer steps taken.
    """
    return f"step-{steps:08d}"


def outbox_file(folder: str) -> Path:
    """Return where records of a run or search wait for MLflow: in its folder, or for a remote one on this machine.

    Args:
        folder: Path or URI of the run's or search's folder.
    """
    if "://" not in folder:
        return Path(folder) / OUTBOX
    name = hashlib.sha256(folder.encode()).hexdigest()[:16]
    return Path.home() / ".cache" / "perceiver_dist" / f"outbox-{name}.sqlite"


def newest_step(folder: str) -> int:
    """Return the step of the checkpoint that Ray Train restores next, 0 if there is none.

    Args:
        folder: Path or URI of the run's folder, in which Ray Train keeps a list of the checkpoints it registered.
    """
    snapshot = json.loads(read_text(join(folder, _SNAPSHOT)) or "{}")
    newest = snapshot.get("latest_checkpoint_result")
    return int(newest["checkpoint_dir_name"].rpartition("-")[2]) if newest else 0


def finished_result(config: RunConfig, folder: str) -> dict[str, Any] | None:
    """Return what result.json holds, if the run was completed and is started again as it was; else None.

    Args:
        config: The resolved configuration of this start.
        folder: Path or URI of the run's folder.
    """
    result = json.loads(read_text(join(folder, RESULT)) or "{}")
    done = result.get("exit") == "completed" and newest_step(folder) == config.last_step
    return result if done and read_text(join(folder, CONFIG)) == to_yaml(config) else None


def first_step(config: RunConfig, folder: str) -> int:
    """Return the step that a run goes on from: of its newest checkpoint, else of the one that it is to begin from.

    Args:
        config: The resolved configuration.
        folder: Path or URI of the run's folder.
    """
    own = newest_step(folder)
    if own or config.train.start_from is None:
        return own
    return int(config.train.start_from.rstrip("/").rpartition("-")[2])


def check_start(config: RunConfig, folder: str) -> None:
    """Make sure that the checkpoint to begin from is there, and before the run's end.

    Args:
        config: The resolved configuration.
        folder: Path or URI of the run's folder.

    Raises:
        UserError: It is not so.
    """
    start = config.train.start_from
    if start is None or newest_step(folder):
        return
    if not re.search(r"step-\d{8}/?$", start) or read_text(join(start, "progress.json")) is None:
        raise UserError(
            f"train.start_from is {start}, which is no checkpoint; name a folder such as runs/NAME/step-00001000"
        )
    if first_step(config, folder) >= config.last_step:
        raise UserError(
            f"train.start_from is {start}, which is not before the run's last step {config.last_step}; raise "
            "train.steps or take an earlier checkpoint"
        )


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
