"""Restart budget: when a run with failing workers is given up."""

from dataclasses import replace

from perceiver_dist.training.liveness.rank_state import RankState
from perceiver_dist.training.tracker.failures import RankFailure
from perceiver_dist.training.tracker.restarts import FailureBudget

FAILURE = RankFailure(
    RankState(1, 7, "training"), "code", "ValueError: too few", "perceiver_dist/x.py:3", "Traceback ..."
)


def test_failures_in_a_row_are_counted_up_to_the_limit() -> None:
    budget = FailureBudget(max_failures=2)
    assert [budget.count(40) for _ in range(3)] == ["", "", ""]
    budget.failed(replace(FAILURE, kind="environment"))
    assert budget.count(40) == (
        "the workers failed 3 times in a row at step 40 without reaching another checkpoint, train.max_failures is 2; "
        "the last error: step 7: rank 1 raised while training: ValueError: too few (perceiver_dist/x.py:3)"
    )


def test_a_checkpoint_resets_the_count() -> None:
    budget = FailureBudget(max_failures=0)
    for step in (10, 20, 30):
        assert budget.count(step) == ""
        budget.saved()
    assert budget.count(40) == ""
    assert "failed 1 times in a row at step 40" in budget.count(40)


def test_the_same_error_at_the_same_step_of_two_starts_ends_the_run() -> None:
    budget = FailureBudget(max_failures=100)
    budget.count(0)
    assert budget.failed(FAILURE)
    assert not budget.failed(replace(FAILURE, state=RankState(0, 7, "training"))), "told once a start"
    assert budget.count(0) == ""
    budget.failed(FAILURE)
    assert budget.count(0) == (
        "step 7: rank 1 raised while training: ValueError: too few (perceiver_dist/x.py:3), for the second time: it is "
        "the code, not the machine"
    )


def test_a_repeated_error_ends_the_run_despite_a_checkpoint_in_between() -> None:
    budget = FailureBudget(max_failures=100)
    for _ in range(2):
        assert budget.count(0) == ""
        budget.failed(FAILURE)
        budget.saved()
    assert budget.count(5)


def test_errors_of_other_steps_places_and_kinds_are_retried() -> None:
    budget = FailureBudget(max_failures=100)
    failures = [
        FAILURE,
        replace(FAILURE, state=RankState(1, 8, "training")),
        replace(FAILURE, place="perceiver_dist/x.py:4"),
        replace(FAILURE, error="TypeError: too few"),
        *[replace(FAILURE, kind="environment")] * 3,
        *[replace(FAILURE, kind="peer")] * 3,
    ]
    told = []
    for failure in failures:
        assert budget.count(0) == ""
        told.append(budget.failed(failure))
    assert told == [True] * 7 + [False] * 3
