"""metrics.jsonl of a run: appended to on a local disk, whole elsewhere, and intact whatever ends its process."""

from pathlib import Path

import fsspec
import pytest

from perceiver_dist.training.tracker.history import History
from perceiver_dist.training.tracker.logged_metrics import EvaluationMetrics, LoggedMetrics, StepMetrics


def entry(step: int) -> LoggedMetrics:
    if step % 5 == 0:
        return EvaluationMetrics(step, {"squares": {"loss": 0.5}})
    return StepMetrics(step=step, losses={"squares": 1.0}, loss=1.0 / step, seconds=0.1)


def filled(uri: str, steps: range) -> History:
    history = History(uri)
    for step in steps:
        history.add(entry(step))
        if step % 3 == 0:
            history.save(0)
    history.save(0)
    return history


@pytest.mark.parametrize("remote", [False, True])
def test_a_history_is_read_as_it_was_saved(tmp_path: Path, remote: bool) -> None:
    fsspec.filesystem("memory").store.clear()
    uri = "memory://run/metrics.jsonl" if remote else str(tmp_path / "metrics.jsonl")
    assert History(uri).entries == []
    history = filled(uri, range(1, 20))
    assert History(uri).entries == history.entries == [entry(step) for step in range(1, 20)]
    history.drop_after(7)
    for step in (8, 9):
        history.add(entry(step))
    history.save(0)
    assert History(uri).entries == [entry(step) for step in range(1, 10)]


def test_a_save_writes_only_what_is_new(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    history = filled(str(file), range(1, 4))
    before = file.stat().st_ino
    history.add(entry(4))
    history.save(0)
    assert file.stat().st_ino == before
    assert History(str(file)).entries == history.entries


def test_a_line_that_was_cut_off_is_dropped_and_written_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    history = filled(str(file), range(1, 4))
    with file.open("ab") as half:
        half.write(b'{"step": 4, "tr')
    assert History(str(file)).entries == history.entries
    # As after a save that failed on a full disk.
    history.add(entry(4))
    history.save(0)
    assert History(str(file)).entries == [entry(step) for step in range(1, 5)]
