"""Tracker: the Ray actor that records a run, chooses checkpoints and counts failures.

Rank 0 reports every logged step to it, and the driver polls its status. It outlives a group of workers, so a restart
continues the same MLflow run and the same learning curves. Workers do not wait for it: a call of an actor returns in a
fraction of a millisecond. Nor does the tracker wait for MLflow, since it has to answer the driver and handle
preemption: records go to a queue (`perceiver_dist/tracking/background_writer.py`).
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from perceiver_dist.checkpoint.best_score import BestScore
from perceiver_dist.checkpoint.lease import Fence
from perceiver_dist.checkpoint.manifest import StoredFile, TrainingProgress
from perceiver_dist.checkpoint.retention import CheckpointList, StartingPoint
from perceiver_dist.checkpoint.run_folder import CONFIG, ERRORS, QUARANTINE, RESULT, RunFolder
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import InternalError, UserError
from perceiver_dist.metrics.undefined import why_undefined
from perceiver_dist.tracking.mlflow_store import RunStatus
from perceiver_dist.training.tracker.failures import RankFailure, errors_reported
from perceiver_dist.training.tracker.fenced import FencedRecord
from perceiver_dist.training.tracker.history import History
from perceiver_dist.training.tracker.learning_watch import LearningWatch
from perceiver_dist.training.tracker.logged_metrics import (
    EvaluationMetrics,
    LoggedMetrics,
    StepMetrics,
    evaluations_in,
)
from perceiver_dist.training.tracker.prometheus import PrometheusMetrics
from perceiver_dist.training.tracker.quarantine import Quarantine
from perceiver_dist.training.tracker.restarts import FailureBudget
from perceiver_dist.training.tracker.sample_log import SampleLog
from perceiver_dist.training.tracker.status import TrainingStatus
from perceiver_dist.training.tracker.throughput import ThroughputMeter
from pipelines.storage.files import STORAGE_ERRORS, reason_of, write_text
from pipelines.storage.retry import RETRY_SECONDS
from pipelines.units.unit_maker import BadSample

if TYPE_CHECKING:
    from perceiver_dist.metrics.metric_totals import Scores


class Tracker(FencedRecord):
    """Record of one run, in its folder and in MLflow.

    Args:
        config: The run's resolved configuration; `storage.run_name` and `tracking.uri` are set.
        folder: The run's folder.
        model_facts: Computed facts of the model, such as its parameters; logged as MLflow parameters.
        fence: The right to write to the folder, which another job may take over.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, model_facts: Mapping[str, str], fence: Fence
    ) -> None:
        self._config = config
        self._model_facts = model_facts
        self._folder = folder
        super().__init__(fence)
        self._status = TrainingStatus()
        self._throughput = ThroughputMeter()
        self._prometheus = PrometheusMetrics(config.storage.run_name or "")
        self._learning = LearningWatch(config)
        self._history = History(folder.metrics)
        self._status.evaluations = evaluations_in(self._history.entries)
        self._samples = SampleLog(folder.samples)
        self._quarantine = Quarantine(folder.quarantine)
        self._status.quarantined = len(self._quarantine)
        self._reported_quarantine = False
        self._failure_budget = FailureBudget(config.train.max_failures)
        self._checkpoints = CheckpointList(
            folder,
            config.train.keep_checkpoints,
            config.train.start_from,
            self.save,
            self._status.messages.append,
        )

    def open(self, environment: Mapping[str, str]) -> str:
        """Open or continue the MLflow run, once, before anything else; return its id.

        Args:
            environment: The driver's variables for MLflow's client; on a cluster this process has those of `ray start`.

        Raises:
            UserError: MLflow cannot open the run.
        """
        os.environ.update(environment)
        # Here and not at the top: MLflow takes seconds, which the driver would spend too, since it imports this class.
        from perceiver_dist.training.tracker.mlflow_record import open_record

        self._writer, self._log = open_record(self._config, self._folder, self._model_facts)
        self._log.text(CONFIG, to_yaml(self._config))
        return self._log.run_id

    def report(self, line: str) -> None:
        """Show a line on the screen, unless it has been shown before.

        Args:
            line: The line.
        """
        if line not in self._status.messages:
            self._status.messages.append(line)

    def status(self) -> TrainingStatus:
        """Return the current status of the run."""
        return self._status

    def choose_starting_point(self) -> StartingPoint:
        """Return the starting point of the next group of workers, the same for every caller until it has started.

        Raises:
            UserError: The checkpoint of `train.start_from` is damaged, or the storage is unavailable. The run ends.
        """
        try:
            return self._checkpoints.choose_starting_point()
        except UserError as error:
            self.stop_for(str(error))
            raise

    def count_start(self) -> str:
        """Count a start of the workers; see `FailureBudget.count`."""
        start = self._checkpoints.start
        self.begin_group(start.group if start else 0)
        return self._failure_budget.count(start.step if start else 0)

    def ranks_hung(self, line: str, name: str, stacks: str) -> None:
        """Record that the ranks made no progress, and were ended to be started again.

        Args:
            line: What they did, one line.
            name: Name of the file for their stacks, without folder and suffix.
            stacks: Their stacks.
        """
        self.check_fence()
        self.keep_traceback(name, stacks)
        self._status.raised = True
        self._failure_budget.hung(line)
        self._status.messages.append(f"{line}; see {ERRORS}/{name}.txt; restarting the workers")

    def rank_failed(self, failure: RankFailure) -> None:
        """Record the failure of a rank: a line on the screen, and the traceback in the run's folder and in MLflow.

        Args:
            failure: The failure.
        """
        name = f"step-{failure.state.step:08d}-rank-{failure.state.rank}"
        self.keep_traceback(name, failure.traceback)
        if failure.kind != "peer":
            self._status.raised = True
        if self._failure_budget.failed(failure):
            self._status.messages.append(f"{failure.line}; see {ERRORS}/{name}.txt; restarting the workers")

    def keep_traceback(self, name: str, text: str) -> None:
        """Save a traceback in the run's folder and in MLflow.

        Args:
            name: Name of the file, without folder and suffix.
            text: The traceback.
        """
        file = f"{ERRORS}/{name}.txt"
        self._log.text(file, text)
        try:
            write_text(self._folder.file(file), text, retry_seconds=0)
        except STORAGE_ERRORS as error:
            self._status.messages.append(f"{file} could not be written ({reason_of(error)})")

    def starting_point(self) -> StartingPoint:
        """Return the chosen starting point.

        Raises:
            InternalError: None has been chosen, although creating the datasets chooses it before any worker starts.
        """
        start = self._checkpoints.start
        if start is None:
            raise InternalError("a worker started before a starting point was chosen")
        return start

    def rank_saved(
        self, group: int, rank: int, waited_for: bool, progress: TrainingProgress, outcome: StoredFile | str
    ) -> None:
        """Record the outcome of a rank's file; see `CheckpointList.rank_saved`.

        Args:
            group: Number of the rank's group.
            rank: The rank.
            waited_for: Whether the ranks wait for the checkpoint.
            progress: Progress of the run at the checkpoint.
            outcome: The rank's file, or the reason why it could not be stored.
        """
        self._checkpoints.rank_saved(group, rank, waited_for, progress, outcome)
        # A new checkpoint is progress: failures before it no longer count.
        if self._checkpoints.outcome(progress.steps) == "":
            self._failure_budget.saved()

    def saved(self, step: int) -> str | None:
        """Return the outcome of a checkpoint: None while its files are being written, "" for success, else the reason.

        Args:
            step: Steps taken.
        """
        return self._checkpoints.outcome(step)

    def ends(self, save_error: str, stopped_early: str) -> None:
        """Record that the run ends without its last checkpoint, or complete before its last step.

        Args:
            save_error: Why its last checkpoint could not be written, one line; "" if it could.
            stopped_early: Why it has taken enough steps, one line; "" if it has not.
        """
        self._status.save_error = self._status.save_error or save_error
        if stopped_early:
            self._status.stopped_early = stopped_early
            self._status.messages.append(f"stopped early: {stopped_early}")

    @errors_reported
    def workers_started(self, step: int, world_size: int) -> None:
        """Record that a group of workers starts at `step`, and drop the records of later steps, which are repeated.

        Args:
            step: Optimizer steps of the restored checkpoint; 0 without one.
            world_size: Number of ranks.
        """
        self._checkpoints.workers_started()
        self._status.started_from = step
        self._status.best = None
        self._status.world_size = world_size
        self._status.restarts += 1
        self._status.restarted_after_error = self._status.raised
        self._status.raised = False
        self._throughput = ThroughputMeter()
        # The steps after the checkpoint are taken and logged again.
        self._history.drop_after(step)
        self._status.evaluations = evaluations_in(self._history.entries)
        self._samples.drop_from(step)

    @errors_reported
    def trained(self, metrics: StepMetrics) -> None:
        """Record the metrics of the steps since the last log.

        Args:
            metrics: The metrics, without the quarantined samples, which the tracker counts.
        """
        metrics = replace(metrics, quarantined=float(len(self._quarantine)))
        self._status.latest = metrics
        self._throughput.add(metrics)
        self._status.mean_samples_per_second, self._status.mean_data_wait_fraction = self._throughput.means()
        places = self._places()
        self._prometheus.show(metrics, {rank: place.host for rank, place in places.items()})
        self._status.messages += self._stragglers.add(metrics.ranks, places)
        self._status.messages += [f"warning: {line}" for line in self._learning.add(metrics)]
        self._record(metrics)

    def evaluated(self, step: int, scores: "Mapping[str, Scores]", best: BestScore | None) -> None:
        """Record an evaluation and draw its figures.

        Args:
            step: Optimizer steps taken.
            scores: Source name -> scores.
            best: The best evaluation so far; None without `train.best_metric`.
        """
        self._status.best = best
        metrics = EvaluationMetrics(step, {source: found.metrics for source, found in scores.items()})
        self._status.scores.update(metrics.flat())
        self._status.evaluations[step] = metrics
        for line in filter(None, map(why_undefined, metrics.sources, metrics.sources.values())):
            self.report(f"warning: {line}")
        self._record(metrics)
        # A full disk or a storage that is away must not end the training, nor keep the ranks waiting; the metrics are
        # kept, and written with the next checkpoint.
        try:
            self._draw(scores)
            self._save(retry_seconds=0)
        except STORAGE_ERRORS as error:
            self._status.messages.append(
                f"record of step {step} could not be written ({reason_of(error)}); training continues"
            )

    @errors_reported
    def saw_samples(self, step: int, unit: int, keys: list[str]) -> None:
        """Record the samples of a unit, so that the order can be audited.

        Args:
            step: The optimizer step, from 0.
            unit: Number of the unit.
            keys: Shard and key of each sample, in the order of the batch.
        """
        self._samples.add(step, unit, keys)

    @errors_reported
    def skipped_step(self, message: str) -> None:
        """Report a step that was skipped because its gradient is not finite.

        Args:
            message: One line.
        """
        self._status.messages.append(message)

    @errors_reported
    def quarantined(self, source: str, unit: int, samples: list[BadSample]) -> None:
        """Record bad samples. The first one of a start is shown on the screen.

        Args:
            source: Name of the source.
            unit: The unit that contained them.
            samples: The samples.
        """
        self._quarantine.add(source, unit, samples)
        self._status.quarantined = len(self._quarantine)
        if not self._reported_quarantine:
            self._reported_quarantine = True
            shard, key, reason = samples[0]
            self._status.messages.append(
                f"1 sample could not be used: source '{source}': sample '{key}' of shard {shard}: {reason}; "
                f"see {QUARANTINE}"
            )
            # With the next checkpoint at the latest.
            with suppress(*STORAGE_ERRORS):
                self._quarantine.save(retry_seconds=0)

    def bad_reasons(self, source: str, limit: int) -> list[tuple[str, int]]:
        """Return the most frequent reasons of a source's bad samples, each with its number of samples.

        Args:
            source: Name of the source.
            limit: Maximum number of reasons.
        """
        return self._quarantine.reasons(source, limit)

    def stop_for(self, message: str) -> None:
        """Record an error that only the user can fix, so that the workers are not restarted.

        Args:
            message: One line.
        """
        self._status.user_error = message

    def preempt(self) -> None:
        """Request that the run saves and stops before its last step."""
        self._status.preempted = True

    def is_preempted(self) -> bool:
        """Return whether the run has been requested to save and stop."""
        return self._status.preempted

    def save(self) -> None:
        """Write metrics, samples and quarantine to the run's folder.

        Raises:
            LeaseLostError: Another job has taken over the run.
        """
        self._save(RETRY_SECONDS)

    def close(self, status: RunStatus, result: Mapping[str, object]) -> int:
        """Close the record.

        Args:
            status: MLflow's status of the run.
            result: Content of result.json.

        Returns:
            Number of records still queued, because MLflow is unavailable.

        Raises:
            OSError: The run's folder cannot be written; MLflow has the record.
        """
        try:
            self.save()
        finally:
            # Records of the log come before its closing, which ends the MLflow run.
            self._log.dictionary(RESULT, result)
            self._log.close(status)
            waiting = self._writer.close()
        return waiting

    def _save(self, retry_seconds: float) -> None:
        self.check_fence()
        self._history.save(retry_seconds)
        self._quarantine.save(retry_seconds)
        self._samples.save(retry_seconds)

    def _record(self, metrics: LoggedMetrics) -> None:
        self._history.add(metrics)
        self._log.metrics(metrics.step, metrics.flat())

    def _draw(self, scores: "Mapping[str, Scores]") -> None:
        # Here and not at the top: Matplotlib is needed for the first evaluation, long after the start.
        from perceiver_dist.training.tracker.figures import keep_figures

        keep_figures(self._config.sources, scores, self._history.entries, self._folder, self._log)
