"""A search in MLflow: one parent run, and a child run per trial that is there before the trial starts.

The trial's own tracker goes on in the child run, as after any restart. So a trial that never gets as far as opening a
run is on record too, and the run of a trial that is killed is closed by somebody who is alive.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from perceiver_dist.checkpoint.run_folder import RunFolder, outbox_file
from perceiver_dist.config.flatten import flatten, to_nested
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_run import MlflowRun, MlflowUnavailableError
from perceiver_dist.tracking.mlflow_store import RunStatus
from pipelines.storage.files import write_text

_MAX_WAIT_SECONDS = 600.0
"""How long a search waits for MLflow to open a trial's run; a server is updated or restarted in less."""
_SECONDS_BETWEEN_TRIES = 5.0
_log = logging.getLogger(__name__)
_STATUS: dict[str, RunStatus] = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class SearchTracking:
    """The MLflow runs of a search.

    Args:
        config: The search's resolved configuration.
        record: Holds the id of the search's run if it goes on; it is set if not. A new one must have been saved.
        folder: Path or URI of the search's folder.
    """

    def __init__(self, config: SearchRunConfig, record: SearchRecord, folder: str) -> None:
        self._config = config
        self._identity = record.identity
        self._logs: dict[int, MlflowRun] = {}
        self._folders: dict[int, RunFolder] = {}
        self._writer = BackgroundWriter(config.tracking.uri or "", outbox_file(folder))
        self._parent = MlflowRun(
            self._writer,
            config.tracking.experiment,
            config.search.name,
            record.mlflow_run_id or None,
            flatten(to_nested(config)),
            {"kind": "search", "search": config.search.name},
            record.identity,
            system_metrics=False,
        )
        record.mlflow_run_id = self._parent.run_id

    def open_trial(self, trial: Trial, training: RunConfig, folder: RunFolder) -> None:
        """Open the run of a trial, or go on with it, and leave its id where the training looks for it.

        Args:
            trial: The trial; its run's id is set.
            training: Its configuration.
            folder: Its folder.

        Raises:
            MlflowUnavailableError: MLflow was away for too long.
        """
        self._folders[trial.number] = folder
        away_since, said = time.monotonic(), False
        while True:
            try:
                self._logs[trial.number] = self._new_log(trial, training)
                break
            except MlflowUnavailableError as away:
                # Decisions do not depend on pace, so the search may wait, and trials that run go on meanwhile.
                if time.monotonic() - away_since > _MAX_WAIT_SECONDS:
                    raise
                if not said:
                    said = True
                    _log.warning("%s waits to be started: %s", trial.name, away)
                time.sleep(_SECONDS_BETWEEN_TRIES)
        trial.mlflow_run_id = self._logs[trial.number].run_id
        self._logs[trial.number].tags({"state": "running"})
        write_text(folder.mlflow_run_id, trial.mlflow_run_id)

    def _new_log(self, trial: Trial, training: RunConfig) -> MlflowRun:
        cost = {f"cost.{name}": f"{value:g}" for name, value in asdict(trial.cost).items()}
        return MlflowRun(
            self._writer,
            self._config.tracking.experiment,
            trial.name,
            trial.mlflow_run_id or None,
            {**flatten(to_nested(training)), **cost},
            {
                MLFLOW_PARENT_RUN_ID: self._parent.run_id,
                "kind": "trial",
                "search": self._config.search.name,
                "trial": str(trial.number),
                "baseline": str(trial.number == 0 and self._config.search.baseline).lower(),
            },
            f"{self._identity}-{trial.name}",
            system_metrics=False,
        )

    def evaluated(self, trial: Trial) -> None:
        """Log a trial's newest evaluation.

        Args:
            trial: The trial.
        """
        look = trial.evaluations[-1]
        spent = trial.cost.training_flops * look.step / trial.cost.steps
        self._logs[trial.number].metrics(look.step, {"score": look.score, "training_flops": spent})

    def close_trial(self, trial: Trial) -> None:
        """Record how a trial ended, and close its run.

        Args:
            trial: The trial; it has ended.
        """
        log = self._logs.pop(trial.number)
        self._writer.take_over(self._folders.pop(trial.number).outbox)
        values = {"seconds": trial.seconds, "samples": float(trial.samples), **asdict(trial.cost)}
        log.metrics(trial.step, {f"cost/{name}": float(value) for name, value in values.items()})
        log.tags({"state": trial.state, "reason": trial.reason})
        log.close(_STATUS[trial.state])

    def progress(self, record: SearchRecord) -> None:
        """Log how the search stands, over the number of trials that have ended.

        Args:
            record: The search.
        """
        ended = sum(trial.state != "running" for trial in record.trials)
        values = dict.fromkeys(("completed", "stopped", "failed"), 0.0)
        for trial in record.trials:
            if trial.state != "running":
                values[trial.state] += 1
        best = record.best
        scores = {"best_score": best.score} if best and best.score is not None else {}
        flops = sum(trial.training_flops for trial in record.trials)
        self._parent.metrics(ended, {**values, **scores, "training_flops": flops})

    def close(self, record: SearchRecord, files: Iterable[Path], status: RunStatus) -> int:
        """Leave the summary with the search's run, and close it.

        Args:
            record: The search.
            files: Report, figures and best.yaml.
            status: How the search ended.

        Returns:
            How many records wait for MLflow, which was away.
        """
        for file in files:
            self._parent.artifact(file)
        best = record.best
        if best:
            values: Mapping[str, object] = {"best_trial": best.name, **best.values}
            self._parent.tags({name: str(value) for name, value in values.items()})
        for log in self._logs.values():
            log.close("KILLED")
        self._parent.close(status)
        return self._writer.close()
