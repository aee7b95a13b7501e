"""Status of a run, passed from the tracker to the driver. It imports little, since Ray Train's controller loads it."""

from dataclasses import dataclass, field

from perceiver_dist.checkpoint.best_score import BestScore
from perceiver_dist.training.tracker.logged_metrics import EvaluationMetrics, StepMetrics


@dataclass
class TrainingStatus:
    """Status of a run.

    Attributes:
        latest: Metrics of the newest logged steps; step 0 before the first.
        mean_samples_per_second: Samples per second since the workers started, without the first logged steps, in which
            the first units are still being read.
        mean_data_wait_fraction: The data wait fraction of the same steps.
        scores: `<source>/<metric>` of the newest evaluation of each source, as result.json has them.
        evaluations: Every evaluation of the run by its step, those before a restart among them.
        messages: Lines for the screen, in order.
        user_error: One line on an error that only the user can fix, after which nothing is retried; "" for none.
        quarantined: Bad samples, each counted once.
        best: The best evaluation by `train.best_metric`; None without it, and until the newest workers evaluate.
        stopped_early: Why the run is complete before its last step; "" if it is not.
        save_error: Why the last checkpoint of the run could not be written; "" if it could.
        preempted: Whether the run was requested to save and stop.
        started_from: Step from which the newest group of workers started; None before the first.
        restarts: Groups of workers after the first; -1 before the first.
        raised: Whether a rank of the newest group failed by itself, and not because another rank was lost.
        restarted_after_error: The same of the previous group.
        world_size: Ranks of the newest group of workers; 0 before the first.
    """

    latest: StepMetrics = field(default_factory=StepMetrics)
    mean_samples_per_second: float = 0.0
    mean_data_wait_fraction: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    evaluations: dict[int, EvaluationMetrics] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    user_error: str = ""
    quarantined: int = 0
    best: BestScore | None = None
    stopped_early: str = ""
    save_error: str = ""
    preempted: bool = False
    started_from: int | None = None
    restarts: int = -1
    raised: bool = False
    restarted_after_error: bool = False
    world_size: int = 0
