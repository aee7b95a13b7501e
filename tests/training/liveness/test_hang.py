"""Bounds of a hang, and what is said of one."""

from dataclasses import replace

import pytest

from perceiver_dist.training.liveness.hang import HangBounds, describe, waits_for_data
from perceiver_dist.training.liveness.heartbeat import Process
from perceiver_dist.training.liveness.life import RankLife, RunLife
from perceiver_dist.training.liveness.rank_state import RankState

BOUNDS = HangBounds(hang_seconds=100, storage_seconds=50)
PROCESS = Process("node", "here", 1, 1, 1)


def rank(number: int, phase: str, idle: float, silent: float = 0.0, stepped: bool = True) -> RankLife:
    state = RankState(number, 40, "training", phase, has_stepped=stepped)
    return RankLife(state, PROCESS, silent, idle)


@pytest.mark.parametrize(
    ("phase", "stepped", "slowest", "bound"),
    [
        ("forward pass", True, 0.0, 100),
        ("forward pass", True, 9.0, 100),
        ("forward pass", True, 30.0, 300),
        ("waiting for data", True, 0.0, 150),
        ("saving", True, 20.0, 250),
        ("evaluating", True, 1.0, 150),
        ("forward pass", False, 30.0, 550),
        ("loading libraries", False, 0.0, 550),
    ],
)
def test_the_bound_follows_the_phase_and_the_pace(
    phase: str, stepped: bool, slowest: float, bound: float
) -> None:
    life = RunLife(1, (rank(0, phase, bound - 1, stepped=stepped),), slowest={phase: slowest})
    assert BOUNDS.bound(life) == bound
    assert not BOUNDS.hangs(life)
    assert BOUNDS.hangs(replace(life, ranks=(replace(life.ranks[0], idle_seconds=bound + 1),)))


def test_a_run_hangs_only_if_no_rank_makes_progress_within_the_largest_bound() -> None:
    slow, stuck = rank(0, "saving", 140), rank(1, "collective", 140)
    assert not BOUNDS.hangs(RunLife(1, (slow, stuck)))
    assert not BOUNDS.hangs(RunLife(1, (replace(slow, idle_seconds=1), replace(stuck, idle_seconds=999))))
    assert BOUNDS.hangs(RunLife(1, tuple(replace(rank, idle_seconds=151) for rank in (slow, stuck))))


def test_zero_seconds_turn_it_off() -> None:
    assert not HangBounds(0, 0).hangs(RunLife(1, (rank(0, "collective", 1e6),)))


def test_ranks_that_wait_for_data_are_not_themselves_to_blame_unless_one_is_silent() -> None:
    waiting, collective = rank(0, "waiting for data", 9), rank(1, "collective", 9)
    assert waits_for_data(RunLife(1, (waiting, collective)))
    assert not waits_for_data(RunLife(1, (waiting, replace(collective, silent_seconds=60))))
    assert not waits_for_data(RunLife(1, (collective,)))


def test_hosts_are_named_where_there_are_several() -> None:
    here, there = rank(0, "collective", 9), rank(1, "backward pass", 70, silent=70)
    assert describe(RunLife(1, (here, there))) == (
        "rank 0: collective; rank 1: silent for 70 s, after: backward pass"
    )
    there = replace(there, process=replace(PROCESS, host="there"))
    assert describe(RunLife(1, (here, there))) == (
        "rank 0 on here: collective; rank 1 on there: silent for 70 s, after: backward pass"
    )
