"""What lies in a run's folder, and by which name."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from perceiver_dist.checkpoint.manifest import MANIFEST, read_manifest
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.strict_json import numbers
from pipelines.storage.files import join, list_folder, read_text

CONFIG = "config.yaml"
RESULT = "result.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
QUARANTINE = "quarantine.jsonl"
MLFLOW_RUN_ID = "mlflow_run_id.txt"
IDENTITY = "identity.txt"
OUTBOX = "outbox.sqlite"
ERRORS = "errors"
"""Folder of the tracebacks of what ended ranks."""
_CHECKPOINT = re.compile(r"step-(\d{8})")


def run_folder(config: RunConfig) -> str:
    """Return path or URI of a run's folder.

    Args:
        config: The run's resolved configuration.
    """
    return join(config.storage.path, config.storage.run_name or "")


def checkpoint_name(steps: int) -> str:
    """Return the folder name of the checkpoint after a number of steps.

    Args:
        steps: Steps taken.
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


def steps_of(checkpoint: str) -> int | None:
    """Return the steps that the name of a checkpoint's folder tells; None if it is not the name of one.

    Args:
        checkpoint: Path or URI of a folder.
    """
    match = _CHECKPOINT.fullmatch(checkpoint.rstrip("/").rpartition("/")[2])
    return int(match[1]) if match else None


def read_result(folder: str) -> dict[str, Any]:
    """Return what result.json holds, empty if there is none.

    Args:
        folder: Path or URI of the run's folder.
    """
    result = json.loads(read_text(join(folder, RESULT)) or "{}")
    return {**result, "metrics": numbers(result["metrics"])} if "metrics" in result else result


def finished_result(config: RunConfig, folder: str) -> dict[str, Any] | None:
    """Return what result.json holds, if the run was completed and is started again as it was; else None.

    Args:
        config: The resolved configuration of this start.
        folder: Path or URI of the run's folder.
    """
    result = read_result(folder)
    done = result.get("exit") == "completed" and newest_step(folder) == config.last_step
    return result if done and read_text(join(folder, CONFIG)) == to_yaml(config) else None


def run_of(checkpoint: str) -> str:
    """Return the folder of the run that a checkpoint is of.

    Args:
        checkpoint: Path or URI of the checkpoint's folder.
    """
    return checkpoint.rpartition("/")[0] or "."


def checkpoint_folders(folder: str) -> list[int]:
    """Return the steps whose checkpoints have a folder, whole or not, the newest first.

    Args:
        folder: Path or URI of the run's folder.
    """
    return sorted(
        (steps for name in list_folder(folder) if (steps := steps_of(name)) is not None),
        reverse=True,
    )


def is_checkpoint(folder: str, steps: int) -> bool:
    """Return whether the checkpoint of a step was written to its end.

    Args:
        folder: Path or URI of the run's folder.
        steps: Steps taken.
    """
    return MANIFEST in list_folder(join(folder, checkpoint_name(steps)))


def newest_step(folder: str) -> int:
    """Return the step of the newest checkpoint, 0 if there is none.

    Args:
        folder: Path or URI of the run's folder.
    """
    return next((step for step in checkpoint_folders(folder) if is_checkpoint(folder, step)), 0)


def check_start(config: RunConfig, folder: str) -> None:
    """Make sure that the checkpoint to begin from is there, and before the run's end.

    Args:
        config: The resolved configuration.
        folder: Path or URI of the run's folder.

    Raises:
        UserError: It is not so, or its manifest is damaged.
    """
    start = config.train.start_from
    if start is None or newest_step(folder):
        return
    if steps_of(start) is None or MANIFEST not in list_folder(start):
        raise UserError(
            f"train.start_from is {start}, which is no checkpoint; name a folder such as runs/NAME/step-00001000"
        )
    if read_manifest(start).progress.steps >= config.last_step:
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
