"""What Ray Tune asks of a search algorithm and of a scheduler, answered by `SearchController`.

Ray Tune starts trials, watches over them, starts them again when their node is lost, and ends them. Its own state is
not needed to go on with a search: of its schedulers it saves none, and what was decided follows from `search.json`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Ray Tune reads these when it is imported or first used. It would write each report to three files of its own.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from perceiver_dist.search.controller import SearchController
from perceiver_dist.search.study.search_record import Trial
from perceiver_dist.search.trial import run_trial
from perceiver_dist.search.trial_resources import TRIAL_MEMORY


def run_trials(
    progress: SearchController, at_once: Callable[[], int], max_failures: int, folder: str
) -> None:
    """Run all trials of a search, to the end or until it is interrupted.

    Args:
        progress: The search.
        at_once: Gives the number of trials that may run now.
        max_failures: Times that a trial whose process is lost is started again.
        folder: Path or URI where Ray Tune may write.
    """
    searcher = _Searcher(progress, at_once)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, tune.PlacementGroupFactory([{"memory": TRIAL_MEMORY}])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(progress, searcher),
            num_samples=-1,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=folder,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=max_failures),
            callbacks=[_LostTrials(progress, searcher)],
        ),
    )
    tuner.fit()


class _NotPickled:
    """Ray Tune pickles what it is given, to go on with a search in its own way; there is nothing to pickle."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_NotPickled, Searcher):
    """Hands out the trials of a search, so many at a time."""

    def __init__(self, progress: SearchController, at_once: Callable[[], int]) -> None:
        super().__init__()
        self.trials: dict[str, Trial] = {}
        self._progress = progress
        self._at_once = at_once
        self._live: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        if len(self._live) >= self._at_once():
            return None
        trial = self._progress.next_trial()
        if trial is None:
            return Searcher.FINISHED if self._progress.drained else None
        self.trials[trial_id] = trial
        self._live.add(trial_id)
        return {"name": trial.name, "folder": self._progress.folder_of(trial).uri}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


class _Scheduler(_NotPickled, FIFOScheduler):
    """Passes reports on, and stops the trials that are not to go on."""

    def __init__(self, progress: SearchController, searcher: _Searcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._progress = progress
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        ends = self._progress.reported(self._searcher.trials[trial.trial_id], result["report"])
        return TrialScheduler.STOP if ends else TrialScheduler.CONTINUE


class _LostTrials(_NotPickled, tune.Callback):
    """Tells the search of trials that were lost, when Ray Tune has given them up."""

    def __init__(self, progress: SearchController, searcher: _Searcher) -> None:
        self._progress = progress
        self._searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = (Path(trial.local_path or "") / "error.txt").read_text().strip().splitlines()
        self._progress.lost(self._searcher.trials[trial.trial_id], lines[-1] if lines else "lost")


def _name_of(trial: TuneTrial) -> str:
    return str(trial.config["name"])
