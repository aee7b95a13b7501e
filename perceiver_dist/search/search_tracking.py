"""MLflow tracking of a search: a parent run, and a child run for each trial.

The search opens a child run before its trial starts, and closes it when the trial has ended. The trial's own tracker
logs to that run as it would after a restart. So a trial that fails before it could open a run is on record, and the
run of a killed trial does not stay open.
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
from perceiver_dist.tracking.mlflow_environment import DEFAULT_EXPERIMENT
from perceiver_dist.tracking.mlflow_run import MlflowRun, MlflowUnavailableError
from perceiver_dist.tracking.mlflow_store import RunStatus
from pipelines.storage.files import write_text

_MAX_WAIT_SECONDS = 600.0
"""How long a search waits for MLflow when it opens a trial's run; updating or restarting a server takes less."""
_SECONDS_BETWEEN_RETRIES = 5.0
"""Short beside the minutes that a trial takes."""
_log = logging.getLogger(__name__)
_STATUS: dict[str, RunStatus] = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class SearchTracking:
    """The MLflow runs of a search.

    Args:
        config: Resolved configuration of the search.
        record: Record of the search, already saved. It holds the ID of the search's run if the search resumes;
            otherwise the ID is set.
        folder: Path or URI of the search's folder.
    """

    def __init__(self, config: SearchRunConfig, record: SearchRecord, folder: str) -> None:
        self._config = config
        self._identity = record.identity
        self._trial_runs: dict[int, MlflowRun] = {}
        self._folders: dict[int, RunFolder] = {}
        self._writer = BackgroundWriter(config.tracking.uri or "", outbox_file(folder))
        self._parent = MlflowRun(
            self._writer,
            config.tracking.experiment or DEFAULT_EXPERIMENT,
            config.search.name,
            record.mlflow_run_id or None,
            flatten(to_nested(config)),
            {"kind": "search", "search": config.search.name},
            record.identity,
            system_metrics=False,  # The trials' own trackers log the load of the machines.
        )
        record.mlflow_run_id = self._parent.run_id

    def open_trial(self, trial: Trial, training: RunConfig, folder: RunFolder) -> None:
        """Open or resume the run of a trial, and write its ID to the trial's folder, where the training looks for it.

        Args:
            trial: The trial; its run ID is set.
            training: Configuration of the trial.
            folder: The trial's run folder.

        Raises:
            MlflowUnavailableError: MLflow was unavailable for too long.
        """
        self._folders[trial.number] = folder
        unavailable_since, warned = time.monotonic(), False
        while True:
            try:
                self._trial_runs[trial.number] = self._trial_run(trial, training)
                break
            except MlflowUnavailableError as error:
                # Decisions do not depend on timing, so the search can wait here while its trials continue to train.
                if time.monotonic() - unavailable_since > _MAX_WAIT_SECONDS:
                    raise
                if not warned:
                    warned = True
                    _log.warning("%s waits for MLflow before it starts: %s", trial.name, error)
                time.sleep(_SECONDS_BETWEEN_RETRIES)
        trial.mlflow_run_id = self._trial_runs[trial.number].run_id
        self._trial_runs[trial.number].tags({"state": "running"})
        write_text(folder.mlflow_run_id, trial.mlflow_run_id)

    def _trial_run(self, trial: Trial, training: RunConfig) -> MlflowRun:
        cost = {f"cost.{name}": f"{value:g}" for name, value in asdict(trial.cost).items()}
        return MlflowRun(
            self._writer,
            self._config.tracking.experiment or DEFAULT_EXPERIMENT,
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

    def log_evaluation(self, trial: Trial) -> None:
        """Log the newest evaluation of a trial.

        Args:
            trial: The trial, with at least one evaluation.
        """
        newest = trial.evaluations[-1]
        spent = trial.cost.training_flops * newest.step / trial.cost.steps
        self._trial_runs[trial.number].metrics(newest.step, {"score": newest.score, "training_flops": spent})

    def close_trial(self, trial: Trial) -> None:
        """Log the state and the cost of a trial, and close its run.

        Args:
            trial: The trial, which has ended.
        """
        run = self._trial_runs.pop(trial.number)
        # Records that the trial's own tracker could not send any more.
        self._writer.take_over(self._folders.pop(trial.number).outbox)
        values = {"seconds": trial.seconds, "samples": float(trial.samples), **asdict(trial.cost)}
        run.metrics(trial.step, {f"cost/{name}": float(value) for name, value in values.items()})
        run.tags({"state": trial.state, "reason": trial.reason})
        run.close(_STATUS[trial.state])

    def log_progress(self, record: SearchRecord) -> None:
        """Log the state of the search, with the number of ended trials as the step.

        Args:
            record: Record of the search.
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
        """Upload the results to the search's run, and close it.

        Args:
            record: Record of the search.
            files: Files to upload: report, figures, best.yaml and search.json.
            status: Final status of the search's run.

        Returns:
            Number of records that could not be sent, since MLflow was unavailable. They wait on disk.
        """
        for file in files:
            self._parent.artifact(file)
        best = record.best
        if best:
            values: Mapping[str, object] = {"best_trial": best.name, **best.values}
            self._parent.tags({name: str(value) for name, value in values.items()})
        for run in self._trial_runs.values():
            run.close("KILLED")
        self._parent.close(status)
        return self._writer.close()
