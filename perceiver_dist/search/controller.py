"""A search while it runs: what is tried next, what a report of a trial means, and which trials are stopped."""

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
from perceiver_dist.search.study.objective import score_of
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial, TrialEvaluation, TrialState
from perceiver_dist.search.study.space import parse_space
from perceiver_dist.search.trial import TrialReport
from pipelines.storage.files import join, write_text

RECORD = "search.json"


class SearchController:
    """Turns what Ray Tune tells of trials into the search's record, and the record into answers for Ray Tune.

    Args:
        config: The search's resolved configuration.
        record: What is known of the search; its unfinished trials go on first.
        candidates: Draws the others.
        folder: Path or URI of the search's folder.
        tracking: The search's MLflow runs.
        display: Shows the search.
        clock: Seconds from any fixed moment.
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
        self._seen = clock()
        self._waiting = [trial for trial in record.trials if self._is_unfinished(trial)]
        self._candidates_are_out = False
        self._trained: set[int] = set()
        self._seen_trial: dict[int, float] = {}

    def next_trial(self) -> Trial | None:
        """Return the trial to start next, its run opened and its configuration written.

        Returns:
            The trial; None if there is none now, and if the search is `drained` there will be no other.
        """
        if not self._waiting:
            self._waiting = self._more_trials()
        if not self._waiting:
            return None
        trial = self._waiting.pop(0)
        training = self._training_of(trial)
        self._save()
        self._tracking.open_trial(trial, training, self.folder_of(trial))
        write_text(self.folder_of(trial).config, to_yaml(training))
        self._seen_trial[trial.number] = self._clock()
        self._save()
        return trial

    @property
    def drained(self) -> bool:
        """Whether no trial is left to start, now or later."""
        if self._waiting:
            return False
        if self._config.search.scheduler == "pbt":
            return not any(trial.state == "running" for trial in self.record.trials)
        return self._candidates_are_out

    def folder_of(self, trial: Trial) -> RunFolder:
        """Return a trial's folder.

        Args:
            trial: The trial.
        """
        return RunFolder(join(self._folder, folder_name(trial)))

    def reported(self, trial: Trial, report: TrialReport) -> bool:
        """Take note of a report.

        Args:
            trial: Whose report it is.
            report: How the trial stands.

        Returns:
            Whether the trial is to be stopped now.
        """
        if trial.state != "running":
            return True
        undefined = self._note(trial, report)
        if undefined:
            self._end(trial, "failed", undefined)
        elif report.exit == "failed":
            self._end(trial, "failed", report.reason)
        elif report.loss is not None and not math.isfinite(report.loss):
            self._end(trial, "failed", f"the training loss is {report.loss} at step {report.step}")
        elif report.exit and report.step == trial.cost.steps:
            self._trained.add(trial.number)
        self._decide()
        self._show()
        return trial.state != "running"

    def lost(self, trial: Trial, reason: str) -> None:
        """Take note that a trial's processes are gone for good.

        Args:
            trial: The trial.
            reason: One line.
        """
        if trial.state == "running" and trial.number not in self._trained:
            self._end(trial, "failed", reason)
            self._decide()
            self._show()

    def _is_unfinished(self, trial: Trial) -> bool:
        """Whether a trial has to train on, in population based training up to the end of the generation."""
        at_end = self._config.search.scheduler == "pbt" and len(trial.evaluations) > self.record.generation
        return trial.state == "running" and not at_end

    def _more_trials(self) -> list[Trial]:
        trial = self._candidates.draw(self.record)
        if trial is not None:
            self.record.trials.append(trial)
            return [trial]
        self._candidates_are_out = True
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
            # Another trial may go on from this generation's last checkpoint, however late it starts.
            keep = max(train.keep_checkpoints, train.eval_every // train.checkpoint_every + 2)
            train = replace(train, stop_at=stop_at, start_from=trial.start_from, keep_checkpoints=keep)
        name = folder_name(trial)
        storage = replace(training.storage, path=self._folder, run_name=name)
        return replace(training, train=train, storage=storage)

    def _note(self, trial: Trial, report: TrialReport) -> str:
        """Write down what a report says; return why its trial cannot be compared, "" if it can."""
        train = self._config.train
        now = self._clock()
        trial.seconds += now - self._seen_trial[trial.number]
        self._seen_trial[trial.number] = now
        # A step is logged now and then only; an evaluation may be newer.
        trial.step = max([report.step, *report.evaluations])
        trial.samples = trial.step * train.lanes * train.micro_batch
        if report.checkpoint_step:
            trial.checkpoint = self.folder_of(trial).checkpoint(report.checkpoint_step)
        between = trial.cost.steps // self._config.search.evaluations
        for step, metrics in sorted(report.evaluations.items()):
            if step // between > len(trial.evaluations):
                score = score_of(metrics, self._config.search.metric, self._config)
                if math.isnan(score):
                    return (
                        f"search.metric is {self._config.search.metric}, which no held-out sample defines at step "
                        f"{step}; look at the held-out shards and their labels"
                    )
                trial.evaluations.append(TrialEvaluation(step // between, step, score, metrics.flat()))
                self._tracking.evaluated(trial)
                self._save()
        return ""

    def _decide(self) -> None:
        """Stop the trials that are found to be stopped, complete those that are trained and found not to be."""
        decisions = decide(self.record.trials, self._config.search)
        for trial in self.record.trials:
            rung = decisions.stopped.get(trial.number)
            if trial.state != "running":
                continue
            if rung is not None:
                # What it did after that evaluation, while it waited for slower trials, does not count.
                del trial.evaluations[rung:]
                self._end(trial, "stopped", f"not among the best at evaluation {rung}")
            elif trial.number in self._trained and trial.number not in decisions.undecided:
                self._end(trial, "completed", "")

    def _end(self, trial: Trial, state: TrialState, reason: str) -> None:
        trial.state, trial.reason = state, reason
        # In this order: a search that is killed in between ends the trial again, and no run is left open.
        self._tracking.close_trial(trial)
        self._save()
        self._tracking.progress(self.record)

    def _save(self) -> None:
        now = self._clock()
        self.record.seconds += now - self._seen
        self._seen = now
        self.record.save(join(self._folder, RECORD))

    def _show(self) -> None:
        live = {
            trial.number: RunningTrial(trial.step, trial.cost.steps)
            for trial in self.record.trials
            if trial.state == "running"
        }
        self._display.update(self.record, live)
