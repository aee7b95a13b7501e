"""Hang of a run: no rank has made progress for longer than anything it usually does takes.

A rank that falls silent in a step keeps all others waiting in the next collective. So the criterion is the progress of
the ranks together, and it needs no idea of what may hang: a stopped process, a lost collective, readers that deliver
nothing, a controller that starts no workers. Progress is a micro-step, a batch of an evaluation, or a piece of a
checkpoint, not a step of the optimizer.

The bound follows the run's own pace: `train.hang_seconds`, or ten times the longest such time seen so far in what the
ranks do now. Where they wait for storage, whose failures are retried for `data.storage_seconds`, that is added. Before
the first step, when kernels are compiled and files opened, it is five times as long.
"""

from dataclasses import dataclass

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.training.liveness.life import RankLife, RunLife

_PACE_FACTOR = 10
"""A load of 20 on two cores makes everything ten times as slow; within a run the load rarely changes more than that."""
_START_FACTOR = 5
"""torch.compile takes minutes for the largest models, in one piece."""
_SILENT_SECONDS = 10.0
"""A rank that sends no heartbeat for so long is stopped, dead, or cut off, or does not let go of Python's lock."""

_UNWATCHED_TIMEOUT = 1800.0
"""PyTorch's default."""

WAITING_FOR_DATA = "waiting for data"
_WITH_STORAGE = (WAITING_FOR_DATA, "saving", "evaluating")
"""Phases in which a rank may wait for a storage."""


@dataclass(frozen=True)
class HangBounds:
    """Time without progress from which a run hangs.

    Attributes:
        hang_seconds: `train.hang_seconds`; 0 for never.
        storage_seconds: `data.storage_seconds`.
    """

    hang_seconds: float
    storage_seconds: float

    @classmethod
    def of(cls, config: RunConfig) -> "HangBounds":
        """Return the bounds of a run.

        Args:
            config: The run's configuration.
        """
        return cls(config.train.hang_seconds, config.data.storage_seconds)

    def bound(self, life: RunLife) -> float:
        """Return the bound for what the ranks do now, the largest of any rank.

        Args:
            life: What is known of the run.
        """
        return max((self._of_rank(rank, life) for rank in life.ranks), default=self.start)

    @property
    def start(self) -> float:
        """The bound before the first step."""
        return _START_FACTOR * self.hang_seconds + self.storage_seconds

    @property
    def collective_timeout(self) -> float:
        """Timeout of collectives, for runs whose driver does not watch: it must be longer than any bound."""
        return 2 * self.start if self.hang_seconds else _UNWATCHED_TIMEOUT

    def _of_rank(self, rank: RankLife, life: RunLife) -> float:
        if not rank.state.has_stepped:
            return self.start
        phase = rank.state.phase
        usual = max(self.hang_seconds, _PACE_FACTOR * life.slowest.get(phase, 0.0))
        return usual + (self.storage_seconds if phase in _WITH_STORAGE else 0.0)

    def hangs(self, life: RunLife) -> bool:
        """Return whether the ranks hang.

        Args:
            life: What is known of the run, with at least one rank.
        """
        return self.hang_seconds > 0 and life.idle_seconds > self.bound(life)


def is_silent(rank: RankLife) -> bool:
    """Return whether a rank sends no heartbeats.

    Args:
        rank: The rank.
    """
    return rank.silent_seconds > _SILENT_SECONDS


def waits_for_data(life: RunLife) -> bool:
    """Return whether the ranks can go on as soon as there is data: all report, and some wait for it.

    Args:
        life: What is known of the run.
    """
    return not any(map(is_silent, life.ranks)) and any(
        rank.state.phase == WAITING_FOR_DATA for rank in life.ranks
    )


def describe(life: RunLife) -> str:
    """Return what the ranks do, one line, such as "rank 0: backward pass; rank 1 on gpu-7: silent for 40 s".

    Args:
        life: What is known of the run.
    """
    hosts = {rank.process.host for rank in life.ranks}
    doing: dict[str, list[str]] = {}
    for rank in life.ranks:
        phase = rank.state.phase
        if is_silent(rank):
            phase = f"silent for {rank.silent_seconds:.0f} s, after: {phase}"
        host = f" on {rank.process.host}" if len(hosts) > 1 else ""
        doing.setdefault(phase, []).append(f"{rank.state.rank}{host}")
    parts = [
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}: {phase}" for phase, ranks in doing.items()
    ]
    return "; ".join(parts) or "the processes of the workers"
