"""What a run tells about itself: passed between workers, tracker and driver, so light to import."""

from dataclasses import dataclass, field

from perceiver_dist.training.tracker.logged_metrics import EvaluationMetrics, StepMetrics


@dataclass
class TrainingStatus:
    """What the driver shows of a run.

    Attributes:
        latest: Metrics of the newest logged steps; of step 0 while there are none.
        mean_samples_per_second: Samples per second since the workers started, without the first logged steps, in which
            the first units are still being read.
        mean_data_wait_fraction: The data wait fraction of the same steps.
        scores: `<source>/<metric>` of the newest evaluation of each source, as result.json has them.
        evaluations: Every evaluation of the run by its step, those before a restart among them.
        messages: Lines for the screen, one after the other: what happened beside the training.
        user_error: One line that the user can mend, after which nothing is retried; "" for none.
        quarantined: Samples that could not be used, each counted once.
        save_error: Why the last checkpoint of the run could not be written; "" if it could.
        preempted: Whether the run was told to save and stop.
        started_from: Step that the newest group of workers started from; None while none has started.
        restarts: Groups of workers that were started after the first.
        raised: Whether a rank of the newest group ended with an error, not because another one was gone.
        restarted_after_error: The same of the group before the newest.
        world_size: Ranks of the newest group of workers; 0 while none has started.
    """

    latest: StepMetrics = field(default_factory=StepMetrics)
    mean_samples_per_second: float = 0.0
    mean_data_wait_fraction: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    evaluations: dict[int, EvaluationMetrics] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    user_error: str = ""
    quarantined: int = 0
    save_error: str = ""
    preempted: bool = False
    started_from: int | None = None
    restarts: int = -1
    raised: bool = False
    restarted_after_error: bool = False
    world_size: int = 0
