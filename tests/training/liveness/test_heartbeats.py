"""Heartbeats as the tracker keeps them: progress, pace, groups."""

from perceiver_dist.training.liveness.heartbeat import Process, RankReport
from perceiver_dist.training.liveness.life import Heartbeats
from perceiver_dist.training.liveness.rank_state import RankState

PROCESS = Process("node", "host", 1, 1, 1)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def report(progress: int, phase: str, idle: float = 0.0, group: int = 1, rank: int = 0) -> RankReport:
    state = RankState(rank, 5, "training", phase, progress, has_stepped=True)
    return RankReport(group, state, idle, PROCESS)


def heartbeats() -> tuple[Heartbeats, Clock]:
    clock = Clock()
    beats = Heartbeats(clock)
    beats.begin_group(1)
    return beats, clock


def test_silence_and_idleness_grow_from_the_last_report() -> None:
    beats, clock = heartbeats()
    beats.rank_lives(report(1, "forward pass", idle=0.5))
    clock.now = 10.0
    [rank] = beats.life().ranks
    assert (rank.silent_seconds, rank.idle_seconds) == (10.0, 10.5)


def test_the_slowest_progress_of_each_phase_is_kept_over_groups() -> None:
    beats, clock = heartbeats()
    beats.rank_lives(report(1, "forward pass"))
    clock.now = 8.0
    beats.rank_lives(report(2, "collective", idle=1.0))
    assert beats.life().slowest == {"forward pass": 7.0}
    clock.now = 9.0
    beats.rank_lives(report(3, "forward pass"))
    beats.begin_group(2)
    assert beats.life().slowest == {"forward pass": 7.0, "collective": 2.0}


def test_a_new_group_has_no_ranks_and_takes_no_reports_of_the_old_one() -> None:
    beats, clock = heartbeats()
    beats.rank_lives(report(1, "forward pass"))
    clock.now = 3.0
    beats.begin_group(2)
    beats.rank_lives(report(2, "forward pass"))
    clock.now = 4.0
    life = beats.life()
    assert (life.group, life.ranks, life.starting_seconds, life.idle_seconds) == (2, (), 1.0, 1.0)
    assert life.is_starting


def test_the_controller_is_silent_from_its_last_heartbeat_on() -> None:
    beats, clock = heartbeats()
    assert beats.life().controller_silent_seconds is None
    beats.controller_lives()
    clock.now = 2.0
    assert beats.life().controller_silent_seconds == 2.0
