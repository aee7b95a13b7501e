"""Tests of the line that says what a starting run waits for."""

from perceiver_dist.training.console import StartWatch


def test_a_start_says_what_it_waits_for_once_that_takes_long() -> None:
    watch = StartWatch()
    assert watch.waiting_for({}, now=10.0) == ""
    assert watch.waiting_for({}, now=17.0) == "waiting for the processes of the workers (7 s)"
    loading = {1: "loading libraries", 0: "loading libraries"}
    assert watch.waiting_for(loading, now=18.0) == ""
    assert watch.waiting_for(loading, now=30.0) == "waiting for ranks 0, 1: loading libraries (12 s)"
    assert watch.waiting_for({**loading, 1: "building the model"}, now=31.0) == ""


def test_nothing_is_waited_for_before_a_start_and_while_steps_are_taken() -> None:
    watch = StartWatch()
    assert watch.waiting_for(None, now=0.0) == ""
    assert watch.waiting_for(None, now=100.0) == ""


def test_ranks_at_different_work_are_told_apart() -> None:
    watch = StartWatch()
    starting = {0: "building the model", 1: "loading libraries"}
    watch.waiting_for(starting, now=0.0)
    shown = watch.waiting_for(starting, now=6.0)
    assert shown == "waiting for rank 0: building the model; rank 1: loading libraries (6 s)"
