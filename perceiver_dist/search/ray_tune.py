"""Ray Tune adapter: a search algorithm, a scheduler and a callback that delegate to `SearchController`.

Ray Tune places trials, monitors them, restarts them when their node is lost, and stops them. All decisions come from
the controller. Resuming a search needs no state of Ray Tune: it does not save schedulers, and decisions follow from
`search.json`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Ray Tune reads these variables when it is imported or first used. The first keeps it from writing each report to a
# CSV, a JSON and a TensorBoard file. The second turns off its own output; the terminal belongs to the search's display.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from perceiver_dist.checkpoint.lease import Fence
from perceiver_dist.search.controller import SearchController
from perceiver_dist.search.study.search_record import Trial
from perceiver_dist.search.trial import run_trial
from perceiver_dist.search.trial_resources import TRIAL_MEMORY
from perceiver_dist.tracking.mlflow_environment import client_variables


def run_trials(
    controller: SearchController,
    max_concurrent: Callable[[], int],
    max_failures: int,
    folder: str,
    fence: Fence,
) -> None:
    """Run all trials of a search until they have ended, or until the search is interrupted.

    Args:
        controller: Controller of the search.
        max_concurrent: Returns the number of trials that may run now.
        max_failures: Max restarts of a trial whose process was lost.
        folder: Path or URI of a folder for files of Ray Tune.
        fence: The search's right to write, for its trials.
    """
    searcher = _Searcher(controller, max_concurrent)
    # In the object store, not in the parameters of a trial: Ray Tune writes those to files, and some are secret.
    trainable = tune.with_parameters(run_trial, environment=client_variables(os.environ), fence=fence)
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"memory": TRIAL_MEMORY}])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(controller, searcher),
            num_samples=-1,  # No limit: `_Searcher.suggest` says when the search is finished.
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=folder,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=max_failures),
            callbacks=[_LostTrials(controller, searcher)],
        ),
    )
    tuner.fit()


class _NotPickled:
    """Base of objects without a pickled state.

    Ray Tune pickles its components to resume a search in its own way, and a controller holds threads and a terminal.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_NotPickled, Searcher):
    """Search algorithm that returns the controller's trials, a limited number at a time."""

    def __init__(self, controller: SearchController, max_concurrent: Callable[[], int]) -> None:
        super().__init__()
        self.trials: dict[str, Trial] = {}
        self._controller = controller
        self._max_concurrent = max_concurrent
        self._live: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        if len(self._live) >= self._max_concurrent():
            return None
        trial = self._controller.next_trial()
        if trial is None:
            return Searcher.FINISHED if self._controller.exhausted else None
        self.trials[trial_id] = trial
        self._live.add(trial_id)
        return {"name": trial.name, "folder": self._controller.folder_of(trial).uri}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        Path(
            checkpoint_path
        ).touch()  # There is no state to save, but Ray Tune warns if this is not implemented.

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


class _Scheduler(_NotPickled, FIFOScheduler):
    """Scheduler that passes reports to the controller, and stops trials on its behalf."""

    def __init__(self, controller: SearchController, searcher: _Searcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._controller = controller
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        ends = self._controller.handle_report(self._searcher.trials[trial.trial_id], result["report"])
        return TrialScheduler.STOP if ends else TrialScheduler.CONTINUE


class _LostTrials(_NotPickled, tune.Callback):
    """Callback that reports trials for which Ray Tune has used up all restarts."""

    def __init__(self, controller: SearchController, searcher: _Searcher) -> None:
        self._controller = controller
        self._searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = (Path(trial.local_path or "") / "error.txt").read_text().strip().splitlines()
        self._controller.handle_lost_trial(
            self._searcher.trials[trial.trial_id], lines[-1] if lines else "lost"
        )


def _name_of(trial: TuneTrial) -> str:
    return str(trial.config["name"])
