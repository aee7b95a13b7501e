"""Controller of a running search: starts trials, handles their reports, and stops them."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.search.report.search_console import RunningTrial, SearchDisplay
from perceiver_dist.search.search_tracking import SearchTracking
from perceiver_dist.search.strategy.candidates import Candidates
from perceiver_dist.search.strategy.halving import decide
from perceiver_dist.search.strategy.population import begin_generation, folder_name, next_generation_is_due
from perceiver_dist.search.study.objective import score_of, unscored_sources
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial, TrialEvaluation, TrialState
from perceiver_dist.search.study.space import parse_space
from perceiver_dist.search.trial import TrialReport
from pipelines.storage.files import join, write_text

RECORD = "search.json"


class SearchController:
    """State machine between Ray Tune and the record of a search.

    It writes what Ray Tune reports about trials into the record, and derives from the record what Ray Tune should do.

    Args:
        config: Resolved configuration of the search.
        record: Record of the search; its unfinished trials resume first.
        candidates: Source of further trials.
        folder: Path or URI of the search's folder.
        tracking: MLflow runs of the search.
        display: Terminal display of the search.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        config: SearchRunConfig,
        record: SearchRecord,
        candidates: Candidates,
        folder: str,
        tracking: SearchTracking,
        display: SearchDisplay,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.record = record
        self._config = config
        self._candidates = candidates
        self._folder = folder
        self._tracking = tracking
        self._display = display
        self._clock = clock
        self._saved_at = clock()
        self._waiting = [trial for trial in record.trials if self._is_unfinished(trial)]
        self._no_more_candidates = False
        self._finished_training: set[int] = set()
        self._report_times: dict[int, float] = {}

    def next_trial(self) -> Trial | None:
        """Return the next trial to start, with its MLflow run opened and its configuration written.

        Returns:
            The trial; None if there is none now. If the search is `exhausted`, there will not be any later either.
        """
        if not self._waiting:
            self._waiting = self._draw_trials()
        if not self._waiting:
            return None
        trial = self._waiting.pop(0)
        training = self._training_of(trial)
        # The trial is on record before its run is opened, so that a search that is killed in between finds the run.
        self._save()
        self._tracking.open_trial(trial, training, self.folder_of(trial))
        write_text(self.folder_of(trial).config, to_yaml(training))
        self._report_times[trial.number] = self._clock()
        self._save()
        return trial

    @property
    def exhausted(self) -> bool:
        """Whether no trial is left to start, now or later."""
        if self._waiting:
            return False
        if self._config.search.scheduler == "pbt":
            return not any(trial.state == "running" for trial in self.record.trials)
        return self._no_more_candidates

    def folder_of(self, trial: Trial) -> RunFolder:
        """Return the run folder of a trial.

        Args:
            trial: The trial.
        """
        return RunFolder(join(self._folder, folder_name(trial)))

    def handle_report(self, trial: Trial, report: TrialReport) -> bool:
        """Record a report, and end the trials that it decides about.

        Args:
            trial: The trial that reports.
            report: Its report.

        Returns:
            Whether Ray Tune has to stop the trial now.
        """
        # Another trial's report may have decided about this one, which only stops when it reports itself.
        if trial.state != "running":
            return True
        problem = self._record_report(trial, report)
        if problem:
            self._end_trial(trial, "failed", problem)
        elif report.exit == "failed":
            self._end_trial(trial, "failed", report.reason)
        elif report.loss is not None and not math.isfinite(report.loss):
            self._end_trial(trial, "failed", f"the training loss is {report.loss} at step {report.step}")
        elif report.exit and report.step == trial.cost.steps:
            self._finished_training.add(trial.number)
        self._apply_decisions()
        self._update_display()
        return trial.state != "running"

    def handle_lost_trial(self, trial: Trial, reason: str) -> None:
        """Record that a trial's processes were lost and will not be restarted.

        Args:
            trial: The trial.
            reason: The error, one line.
        """
        # A trial that was trained to its end may wait for its decision without processes.
        if trial.state == "running" and trial.number not in self._finished_training:
            self._end_trial(trial, "failed", reason)
            self._apply_decisions()
            self._update_display()

    def _is_unfinished(self, trial: Trial) -> bool:
        """Return whether a trial has training left; in population based training, up to the end of the generation."""
        at_end = self._config.search.scheduler == "pbt" and len(trial.evaluations) > self.record.generation
        return trial.state == "running" and not at_end

    def _draw_trials(self) -> list[Trial]:
        trial = self._candidates.draw(self.record)
        if trial is not None:
            self.record.trials.append(trial)
            return [trial]
        self._no_more_candidates = True
        search = self._config.search
        if search.scheduler == "pbt" and next_generation_is_due(self.record, search.evaluations):
            begin_generation(self.record, parse_space(search.space, self._config), search.seed)
            return [trial for trial in self.record.trials if trial.state == "running"]
        return []

    def _training_of(self, trial: Trial) -> RunConfig:
        training = self._candidates.training_of(trial.values)
        train = training.train
        if self._config.search.scheduler == "pbt":
            stop_at = (self.record.generation + 1) * train.eval_every
            # Other trials may start late from this generation's last checkpoint, so keep it over the whole next one.
            keep = max(train.keep_checkpoints, train.eval_every // train.checkpoint_every + 2)
            train = replace(train, stop_at=stop_at, start_from=trial.start_from, keep_checkpoints=keep)
        name = folder_name(trial)
        storage = replace(training.storage, path=self._folder, run_name=name)
        return replace(training, train=train, storage=storage)

    def _record_report(self, trial: Trial, report: TrialReport) -> str:
        """Record a report; return why the trial cannot be compared with others, "" if it can."""
        train = self._config.train
        now = self._clock()
        trial.seconds += now - self._report_times[trial.number]
        self._report_times[trial.number] = now
        # Steps are logged at intervals, so an evaluation may be newer than the last step reported.
        trial.step = max([report.step, *report.evaluations])
        trial.samples = trial.step * train.lanes * train.micro_batch
        if report.checkpoint_step:
            trial.checkpoint = self.folder_of(trial).checkpoint(report.checkpoint_step)
        between = trial.cost.steps // self._config.search.evaluations
        for step, metrics in sorted(report.evaluations.items()):
            if step // between > len(trial.evaluations):
                score = score_of(metrics, self._config.search.metric, self._config)
                if math.isnan(score):
                    undefined = unscored_sources(metrics, self._config.search.metric, self._config)
                    return f"search.metric is {self._config.search.metric}; at step {step}, {'; '.join(undefined)}"
                trial.evaluations.append(TrialEvaluation(step // between, step, score, metrics.flat()))
                self._tracking.log_evaluation(trial)
                self._save()
        return ""

    def _apply_decisions(self) -> None:
        """End the trials that the scores so far decide about: stop them, or complete those that are fully trained."""
        decisions = decide(self.record.trials, self._config.search)
        for trial in self.record.trials:
            rung = decisions.stopped.get(trial.number)
            if trial.state != "running":
                continue
            if rung is not None:
                # Evaluations after the deciding one, while it waited for slower trials, do not count.
                del trial.evaluations[rung:]
                self._end_trial(trial, "stopped", f"not among the best at evaluation {rung}")
            elif trial.number in self._finished_training and trial.number not in decisions.undecided:
                self._end_trial(trial, "completed", "")

    def _end_trial(self, trial: Trial, state: TrialState, reason: str) -> None:
        trial.state, trial.reason = state, reason
        # The run is closed before the record is saved: a search that is killed in between ends the trial again. In the
        # other order, its run would stay open.
        self._tracking.close_trial(trial)
        self._save()
        self._tracking.log_progress(self.record)

    def _save(self) -> None:
        now = self._clock()
        self.record.seconds += now - self._saved_at
        self._saved_at = now
        self.record.save(join(self._folder, RECORD))

    def _update_display(self) -> None:
        live = {
            trial.number: RunningTrial(trial.step, trial.cost.steps)
            for trial in self.record.trials
            if trial.state == "running"
        }
        self._display.update(self.record, live)
