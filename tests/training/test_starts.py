"""When a run whose workers fail is given up."""

from dataclasses import replace

from perceiver_dist.training.failures import RankFailure, RankState
from perceiver_dist.training.starts import Starts

FAILURE = RankFailure(
    RankState(1, 7, "training"), "code", "ValueError: too few", "perceiver_dist/x.py:3", "Traceback ..."
)


def test_starts_that_come_to_nothing_are_counted_up_to_the_limit() -> None:
    starts = Starts(max_failures=2)
    assert [starts.count("clips", 40) for _ in range(3)] == ["", "", ""]
    starts.failed(replace(FAILURE, kind="environment"))
    assert starts.count("clips", 40) == (
        "the workers failed 3 times in a row at step 40 without reaching another checkpoint, train.max_failures is 2; "
        "the last error: step 7: rank 1 raised while training: ValueError: too few (perceiver_dist/x.py:3)"
    )


def test_a_checkpoint_starts_the_count_anew() -> None:
    starts = Starts(max_failures=0)
    for step in (10, 20, 30):
        assert starts.count("clips", step) == ""
        starts.saved()
    assert starts.count("clips", 40) == ""
    assert "failed 1 times in a row at step 40" in starts.count("clips", 40)


def test_every_sources_dataset_is_made_once_a_start() -> None:
    starts = Starts(max_failures=0)
    assert [starts.count(source, 0) for source in ("clips", "fashion")] == ["", ""]
    assert starts.count("clips", 0)


def test_the_same_error_at_the_same_step_of_two_starts_is_enough() -> None:
    starts = Starts(max_failures=100)
    starts.count("clips", 0)
    assert starts.failed(FAILURE)
    assert not starts.failed(replace(FAILURE, state=RankState(0, 7, "training"))), "told once a start"
    assert starts.count("clips", 0) == ""
    starts.failed(FAILURE)
    assert starts.count("clips", 0) == (
        "step 7: rank 1 raised while training: ValueError: too few (perceiver_dist/x.py:3), for the second time: it is "
        "the code, not the machine"
    )


def test_a_checkpoint_in_between_does_not_excuse_it() -> None:
    starts = Starts(max_failures=100)
    for _ in range(2):
        assert starts.count("clips", 0) == ""
        starts.failed(FAILURE)
        starts.saved()
    assert starts.count("clips", 5)


def test_other_steps_places_and_kinds_are_tried_again() -> None:
    starts = Starts(max_failures=100)
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
        assert starts.count("clips", 0) == ""
        told.append(starts.failed(failure))
    assert told == [True] * 7 + [False] * 3
