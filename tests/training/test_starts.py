"""When a run whose workers fail is given up."""

from perceiver_dist.training.starts import Starts


def test_starts_that_come_to_nothing_are_counted_up_to_the_limit() -> None:
    starts = Starts(max_failures=2)
    assert [starts.count("clips", 40) for _ in range(3)] == ["", "", ""]
    starts.failed("ValueError: too few")
    assert starts.count("clips", 40) == (
        "the workers failed 3 times in a row at step 40 without reaching another checkpoint, train.max_failures is 2; "
        "the last error: ValueError: too few"
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
