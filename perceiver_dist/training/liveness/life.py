"""Life of a run's processes, as their heartbeats tell it; kept by the tracker, read by the driver."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from perceiver_dist.training.liveness.heartbeat import Process, RankReport
from perceiver_dist.training.liveness.rank_state import RankState


@dataclass(frozen=True)
class RankLife:
    """What is known of a rank.

    Attributes:
        state: Its state in its last report.
        process: Its process.
        silent_seconds: Time since its last report.
        idle_seconds: Time since its last progress, as far as is known.
        collectives: Its last collectives, if it has made no progress for some seconds.
    """

    state: RankState
    process: Process
    silent_seconds: float
    idle_seconds: float
    collectives: str = ""


@dataclass(frozen=True)
class RunLife:
    """What is known of the processes of a run.

    Attributes:
        group: Number of the newest group of workers; 0 before the first.
        ranks: The ranks that have reported since it was to start, by number.
        starting_seconds: Time since the newest group was to start.
        slowest: Longest time without progress in each phase, of any rank that then made progress.
        controller_silent_seconds: Time since the last report of Ray Train's controller; None before the first.
    """

    group: int = 0
    ranks: tuple[RankLife, ...] = ()
    starting_seconds: float = 0.0
    slowest: dict[str, float] = field(default_factory=dict)
    controller_silent_seconds: float | None = None

    @property
    def is_starting(self) -> bool:
        """Whether a rank has yet to take its first step, or to report at all."""
        return not self.ranks or not all(rank.state.has_stepped for rank in self.ranks)

    @property
    def idle_seconds(self) -> float:
        """Time since any rank made progress; since the start, if none has reported."""
        return min((rank.idle_seconds for rank in self.ranks), default=self.starting_seconds)


class Heartbeats:
    """The heartbeats of a run. Calls may come from several threads.

    Args:
        clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._group = 0
        self._began = clock()
        self._reports: dict[int, tuple[RankReport, float]] = {}
        self._slowest: dict[str, float] = {}
        self._controller: float | None = None

    @property
    def group(self) -> int:
        """Number of the newest group of workers; 0 before the first."""
        return self._group

    def begin_group(self, group: int) -> None:
        """Forget the ranks of earlier groups.

        Args:
            group: Number of the group of workers that is to start.
        """
        with self._lock:
            self._group, self._began = group, self._clock()
            self._reports.clear()

    def rank_lives(self, report: RankReport) -> None:
        """Record a heartbeat of a rank. One of an earlier group counts for nothing.

        Args:
            report: What the rank does.
        """
        with self._lock:
            if report.group != self._group:
                return
            now, rank = self._clock(), report.state.rank
            before = self._reports.get(rank)
            if before is not None and report.state.progress != before[0].state.progress:
                was, at = before
                # From its last progress until now, less what has passed since the newest one.
                idle = was.idle_seconds + (now - at) - report.idle_seconds
                phase = was.state.phase
                if was.state.has_stepped:
                    self._slowest[phase] = max(self._slowest.get(phase, 0.0), idle)
            self._reports[rank] = report, now

    def controller_lives(self) -> None:
        """Record a heartbeat of Ray Train's controller."""
        with self._lock:
            self._controller = self._clock()

    def life(self) -> RunLife:
        """Return what is known now."""
        with self._lock:
            now = self._clock()
            ranks = tuple(_life(report, now - at) for _, (report, at) in sorted(self._reports.items()))
            controller = None if self._controller is None else now - self._controller
            return RunLife(self._group, ranks, now - self._began, dict(self._slowest), controller)


def _life(report: RankReport, silent: float) -> RankLife:
    idle = silent + report.idle_seconds
    return RankLife(report.state, report.process, silent, idle, report.collectives)
