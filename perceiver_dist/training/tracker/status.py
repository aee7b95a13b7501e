"""What a run tells about itself: passed between workers, tracker and driver, so light to import."""

from dataclasses import dataclass, field


@dataclass
class TrainingStatus:
    """What the driver shows of a run.

    Attributes:
        step: Optimizer steps taken; 0 before the first.
        loss: Mean training loss since the last log, in nats.
        samples_per_second: Of the last logged steps, over all ranks.
        data_wait_fraction: Share of their time that ranks waited for data, 0 to 1.
        mean_samples_per_second: The same since the workers started, without the first logged steps, in which the
            first units are still being read.
        mean_data_wait_fraction: The same.
        scores: `<source>/<metric>` of the newest evaluation of each source.
        evaluations: Step and metrics of every evaluation of the run, those before a restart among them.
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

    step: int = 0
    loss: float = float("nan")
    samples_per_second: float = 0.0
    data_wait_fraction: float = 0.0
    mean_samples_per_second: float = 0.0
    mean_data_wait_fraction: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
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
