"""A finished search in MLflow without any training: real candidates and costs, computed scores."""

from pathlib import Path

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import parse_run, run_parser
from perceiver_dist.search.search_tracking import SearchTracking
from perceiver_dist.search.strategy.candidates import Candidates
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial, TrialEvaluation
from perceiver_dist.tracking.background_writer import BackgroundWriter
from perceiver_dist.tracking.mlflow_run import MlflowRun

TRIALS = 9
CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def record_search(storage: Path, tracking_uri: str) -> SearchRecord:
    """Record the search in MLflow; every third trial is stopped at its first evaluation, and the last one fails."""
    config, _ = parse_run(
        run_parser("", SearchRunConfig),
        [
            f"--storage.path={storage}",
            f"--tracking.uri={tracking_uri}",
            f"--search.trials={TRIALS}",
        ],
        [str(CONFIGS / "default.yaml"), str(CONFIGS / "search.yaml")],
        SearchRunConfig,
    )
    record = SearchRecord()
    candidates = Candidates(config.search, config.training, "cpu")
    tracking = SearchTracking(config, record, str(storage))
    while (trial := candidates.draw(record)) is not None:
        record.trials.append(trial)
        tracking.open_trial(trial, candidates.training_of(trial.values), RunFolder(str(storage / trial.name)))
        if trial.number == TRIALS - 1:
            trial.state, trial.reason = "failed", "out of memory"
        else:
            trial.state = "stopped" if trial.number % 3 == 2 else "completed"
            _record_evaluations(trial, config, tracking, storage)
        tracking.close_trial(trial)
        tracking.log_progress(record)
    tracking.close(record, [], "FINISHED")
    return record


def _record_evaluations(
    trial: Trial, config: SearchRunConfig, tracking: SearchTracking, storage: Path
) -> None:
    """Log the metrics that the trial's tracker and the search would log at each evaluation."""
    writer = BackgroundWriter(config.tracking.uri or "", RunFolder(f"{storage}/{trial.name}").outbox)
    log = MlflowRun(
        writer,
        config.tracking.experiment or "perceiver",
        trial.name,
        trial.mlflow_run_id,
        {},
        {},
        "",
        False,
    )
    between = trial.cost.steps // config.search.evaluations
    for number in range(1, 2 if trial.state == "stopped" else config.search.evaluations + 1):
        score = _score(trial, number)
        metrics = {"fashion/accuracy": score + 0.1, "clips/accuracy": score - 0.1}
        trial.step = number * between
        log.metrics(
            trial.step, {"fashion/train_loss": 1.9 - score, "clips/train_loss": 2.2 - score, **metrics}
        )
        trial.evaluations.append(TrialEvaluation(number, trial.step, score, metrics))
        tracking.log_evaluation(trial)
    writer.close()


def _score(trial: Trial, evaluation: int) -> float:
    """Return a score that favours few, wide latents and two cross-attends, and rises with each evaluation."""
    latents, width, cross_attends, learning_rate = (
        trial.values[name]
        for name in ("model.latents", "model.width", "model.cross_attends", "optim.learning_rate")
    )
    reached = 0.7 - latents / 400 + width / 600 - 0.05 * abs(cross_attends - 2) - 10 * learning_rate
    return float(reached * (1 - 0.5 * 0.4**evaluation))
