"""Tests of the line that says what a run waits for."""

from perceiver_dist.training.console import waiting_for
from perceiver_dist.training.liveness.heartbeat import Process
from perceiver_dist.training.liveness.life import RankLife, RunLife
from perceiver_dist.training.liveness.rank_state import RankState


def rank(number: int, phase: str, idle: float, silent: float = 0.0, stepped: bool = True) -> RankLife:
    state = RankState(number, step=40, activity="training", phase=phase, has_stepped=stepped)
    return RankLife(state, Process("node", "host", 1, 1, 1), silent, idle)


def test_a_start_says_what_it_waits_for_once_that_takes_long() -> None:
    assert waiting_for(RunLife(group=1, starting_seconds=4), 0) == ""
    shown = waiting_for(RunLife(group=1, starting_seconds=7), 0)
    assert shown == "waiting for the processes of the workers (7 s)"
    loading = tuple(rank(number, "loading libraries", 12, stepped=False) for number in (0, 1))
    assert waiting_for(RunLife(1, loading), 0) == "waiting for ranks 0, 1: loading libraries (12 s)"


def test_nothing_is_waited_for_before_a_start_and_while_steps_are_taken() -> None:
    assert waiting_for(RunLife(starting_seconds=100), 0) == ""
    moving = (rank(0, "backward pass", 1.0), rank(1, "backward pass", 30.0))
    assert waiting_for(RunLife(1, moving), 0) == ""


def test_a_run_that_stands_still_says_so_and_where() -> None:
    still = (rank(0, "optimizer step", 35.0), rank(1, "backward pass", 36.0, silent=36.0))
    assert waiting_for(RunLife(1, still), 0) == (
        "step 40: no progress for 0:35 (rank 0: optimizer step; rank 1: silent for 36 s, after: backward pass)"
    )


def test_a_phase_that_usually_takes_long_is_no_standstill() -> None:
    still = (rank(0, "forward pass", 35.0),)
    assert waiting_for(RunLife(1, still, slowest={"forward pass": 20.0}), 0) == ""
    assert waiting_for(RunLife(1, still, slowest={"forward pass": 10.0}), 0) != ""


def test_a_silent_tracker_is_named() -> None:
    assert waiting_for(RunLife(1), 8.0) == "the tracker has not answered for 0:08"
