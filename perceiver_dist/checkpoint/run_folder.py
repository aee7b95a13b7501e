"""The folder of one run: the names of its files, and what they hold.

lease.json                  which process trains the run, or released it (`perceiver_dist/checkpoint/lease.py`)
config.yaml                 the resolved configuration of the newest start
metrics.jsonl               one line per logged step and per evaluation
samples.jsonl               which samples each step learned from, with tracking.samples
quarantine.jsonl            the samples that could not be used
errors/                     a traceback for each failed rank
result.json                 the outcome, once the run has ended
learning_curves.png, confusion_SOURCE.png (of many classes confusions_SOURCE.csv)
mlflow_run_id.txt, identity.txt, outbox.sqlite      the run in MLflow, and its records that MLflow does not have yet
step-00001000/              one checkpoint; `manifest.json` in it is written last

Demo data, and unless other places are configured shard indexes and MLflow's local database, are in `storage.path`
beside the runs.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from perceiver_dist.checkpoint.manifest import MANIFEST, read_manifest
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.strict_json import numbers
from pipelines.storage.files import is_file, join, list_folder, read_text
from pipelines.storage.retry import retried

CONFIG = "config.yaml"
RESULT = "result.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
QUARANTINE = "quarantine.jsonl"
MLFLOW_RUN_ID = "mlflow_run_id.txt"
IDENTITY = "identity.txt"
OUTBOX = "outbox.sqlite"
ERRORS = "errors"
"""Folder of the tracebacks of failed ranks."""
_CHECKPOINT = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, in which every file is named here and nowhere else.

    Attributes:
        uri: Path or URI of the folder, which need not exist yet.
    """

    uri: str

    @classmethod
    def of(cls, config: RunConfig) -> "RunFolder":
        """Return the folder of a run.

        Args:
            config: The run's resolved configuration.
        """
        return cls(join(config.storage.path, config.storage.run_name or ""))

    @classmethod
    def of_checkpoint(cls, checkpoint: str) -> "RunFolder":
        """Return the folder of the run that wrote a checkpoint.

        Args:
            checkpoint: Path or URI of the checkpoint's folder.
        """
        return cls(checkpoint.rpartition("/")[0] or ".")

    def file(self, name: str) -> str:
        """Return path or URI of a file in the folder.

        Args:
            name: Its name, such as "learning_curves.png".
        """
        return join(self.uri, name)

    @property
    def config(self) -> str:
        """Path or URI of config.yaml."""
        return self.file(CONFIG)

    @property
    def result(self) -> str:
        """Path or URI of result.json."""
        return self.file(RESULT)

    @property
    def metrics(self) -> str:
        """Path or URI of metrics.jsonl."""
        return self.file(METRICS)

    @property
    def samples(self) -> str:
        """Path or URI of samples.jsonl."""
        return self.file(SAMPLES)

    @property
    def quarantine(self) -> str:
        """Path or URI of quarantine.jsonl."""
        return self.file(QUARANTINE)

    @property
    def mlflow_run_id(self) -> str:
        """Path or URI of the file with the id of the MLflow run."""
        return self.file(MLFLOW_RUN_ID)

    @property
    def identity(self) -> str:
        """Path or URI of the file with the tag by which the run is found in MLflow before its id is known."""
        return self.file(IDENTITY)

    @property
    def outbox(self) -> Path:
        """Where records wait for MLflow."""
        return outbox_file(self.uri)

    def checkpoint(self, steps: int) -> str:
        """Return path or URI of the checkpoint after a number of steps.

        Args:
            steps: Steps taken.
        """
        return self.file(checkpoint_name(steps))

    def checkpoint_folders(self) -> list[int]:
        """Return the steps whose checkpoints have a folder, complete or not, the newest first.

        Raises:
            OSError: Storage fails.
        """
        names = retried(self._names, self.uri, reads=True)
        found = (steps_of(name) for name in names)
        return sorted((steps for steps in found if steps is not None), reverse=True)

    def _names(self) -> Iterable[str]:
        """Return the names of the files in the folder.

        Raises:
            OSError: Storage fails.
        """
        names = list_folder(self.uri, retry_seconds=0)
        if not names and read_text(self.config, retry_seconds=0) is not None:
            # A store that answers nothing would make the run start anew, over what it has.
            raise OSError(f"the list of files in {self.uri} came back empty")
        return names

    def is_checkpoint(self, steps: int) -> bool:
        """Return whether the checkpoint of a step is complete: its manifest, which is written last, is there.

        Args:
            steps: Steps taken.
        """
        return is_file(join(self.checkpoint(steps), MANIFEST))

    def newest_step(self) -> int:
        """Return the step of the newest complete checkpoint, 0 if there is none."""
        return next((step for step in self.checkpoint_folders() if self.is_checkpoint(step)), 0)

    def best_kept(self, best: int) -> int:
        """Return the step of the best checkpoint that is there.

        Args:
            best: Step of the best evaluation, 0 if there is none. If its checkpoint could not be written, the newest
                one before it that was the best in its time takes its place.

        Returns:
            0 if there is none.
        """
        if not best or self.is_checkpoint(best):
            return best
        for step in self.checkpoint_folders():
            if step < best and self.is_checkpoint(step):
                with suppress(UserError):  # a damaged one
                    then = read_manifest(self.checkpoint(step)).progress.best
                    if then is not None and then.step == step:
                        return step
        return 0

    def model_step(self) -> int:
        """Return the step of the checkpoint that the run stands for, 0 if there is none.

        With `train.best_metric` it is that of the best evaluation, else the newest complete one.

        Raises:
            UserError: The best checkpoint is not there any more.
        """
        newest = self.newest_step()
        if not newest:
            return 0
        # The evaluation after the last step comes after the last checkpoint, so that only the result has it.
        result = self.read_result()
        best = read_manifest(self.checkpoint(newest)).progress.best
        step = best.step if best else 0
        if result.get("best") and result["steps"] == newest:
            step = result["best"]["step"]
        if step and not self.is_checkpoint(step):
            raise UserError(
                f"{self.checkpoint(step)}: the best checkpoint of the run (train.best_metric) is not there; name "
                f"another one, such as {self.checkpoint(self.best_kept(step) or newest)}"
            )
        return step or newest

    def read_config(self) -> str | None:
        """Return the text of config.yaml, None if there is none."""
        return read_text(self.config)

    def read_mlflow_run_id(self) -> str:
        """Return the id of the MLflow run, "" if there is none."""
        return (read_text(self.mlflow_run_id) or "").strip()

    def read_result(self) -> dict[str, Any]:
        """Return what result.json holds, empty if there is none."""
        result = json.loads(read_text(self.result) or "{}")
        return {**result, "metrics": numbers(result["metrics"])} if "metrics" in result else result

    def finished_result(self, config: RunConfig) -> dict[str, Any] | None:
        """Return what result.json holds if the run is complete and its configuration unchanged; else None.

        Args:
            config: The resolved configuration of this start.
        """
        result = self.read_result()
        last = result["steps"] if result.get("stopped_early") else config.last_step
        done = result.get("exit") == "completed" and self.newest_step() == last
        return result if done and self.read_config() == to_yaml(config) else None

    def check_resumable(self, config: RunConfig) -> None:
        """Check that a resumed run learns from the samples that an uninterrupted one would learn from.

        Which samples a step learns from is a function of some options; with other values, steps would silently repeat
        and skip samples. Everything else (steps, workers, ZeRO stage, learning rate, ...) may change between starts.

        Args:
            config: The resolved configuration of this start; nothing is checked if there is no checkpoint yet.

        Raises:
            UserError: An option that decides the order of samples has another value than before.
        """
        before = self.read_config() if self.newest_step() else None
        if before is None:
            return
        old, new = _order_options(yaml.safe_load(before)), _order_options(asdict(config))
        for name, value in new.items():
            if value != old.get(name):
                raise UserError(
                    f"{name} is {value}, but run '{config.storage.run_name}' was started with {old.get(name)}; it "
                    "decides the order of samples: keep it, or use another storage.run_name"
                )

    def check_initial_checkpoint(self, config: RunConfig) -> None:
        """Check that the checkpoint of `train.start_from` exists and is before the run's end.

        Args:
            config: The resolved configuration; nothing is checked if the run has a checkpoint of its own.

        Raises:
            UserError: It is not a checkpoint, its manifest is damaged, or it is not before the run's last step.
        """
        start = config.train.start_from
        if start is None or self.newest_step():
            return
        if steps_of(start) is None or not is_file(join(start, MANIFEST)):
            raise UserError(
                f"train.start_from is {start}, which is not a checkpoint; name a folder such as runs/NAME/step-00001000"
            )
        if read_manifest(start).progress.steps >= config.last_step:
            raise UserError(
                f"train.start_from is {start}, which is not before the run's last step {config.last_step}; raise "
                "train.steps or take an earlier checkpoint"
            )


def checkpoint_name(steps: int) -> str:
    """Return the folder name of the checkpoint after a number of steps.

    Args:
        steps: Steps taken.
    """
    return f"step-{steps:08d}"


def steps_of(checkpoint: str) -> int | None:
    """Return the number of steps in the name of a checkpoint's folder; None for any other name.

    Args:
        checkpoint: Path or URI of a folder.
    """
    match = _CHECKPOINT.fullmatch(checkpoint.rstrip("/").rpartition("/")[2])
    return int(match[1]) if match else None


def outbox_file(folder: str) -> Path:
    """Return where records of a run or search wait for MLflow: in its folder, or for a remote one on this machine.

    Args:
        folder: Path or URI of the run's or search's folder.

    Raises:
        UserError: The folder is remote, and this user has no home.
    """
    if "://" not in folder:
        return Path(folder) / OUTBOX
    # SQLite needs a local file. The name follows from the folder, so that the same command finds it again.
    name = hashlib.sha256(folder.encode()).hexdigest()[:16]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise UserError(
            f"{folder} is remote, so records for MLflow wait in a local folder, but this user has no home; set HOME or "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return cache / "perceiver_dist" / f"outbox-{name}.sqlite"


def _order_options(tree: Mapping[str, Any]) -> dict[str, Any]:
    train, data = tree["train"], tree["data"]
    options = {f"train.{name}": train[name] for name in ("seed", "lanes", "micro_batch")}
    options["data.chunk_size"] = data["chunk_size"]
    options["sources"] = [source["name"] for source in tree["sources"]]
    for source in tree["sources"]:
        for name in ("train_shards", "weight"):
            options[f"sources.{source['name']}.{name}"] = source[name]
        # Not in the configurations of older versions.
        options[f"sources.{source['name']}.balance"] = source.get("balance", 0.0)
    return options
