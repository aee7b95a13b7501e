"""Tests of the progress display: on a terminal, in a log, of a resumed run; and of the table of results."""

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from perceiver_dist.display.progress import ProgressLine, SamplesLine, result_table


class Clock:
    """Clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(
    updates: Iterable[tuple[float, int]], *, total_steps: int = 600, seconds_between_lines: float = 0
) -> list[str]:
    """Return the lines written without a terminal for updates of (seconds since the previous one, step)."""
    console, clock = Console(file=io.StringIO(), width=40), Clock()
    with ProgressLine(console, seconds_between_lines, clock) as line:
        for seconds, step in updates:
            clock.now += seconds
            line.update(step, total_steps, 1.2341, 309.6, 0.012)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def etas(updates: Iterable[tuple[float, int]], total_steps: int) -> list[str]:
    return [line.split("ETA ")[1] for line in shown(updates, total_steps=total_steps)]


def test_the_line_shows_step_loss_throughput_data_wait_and_eta() -> None:
    expected = "step 120/600  loss 1.234  310 samples/s  data wait 1%  ETA 8:00"
    assert shown([(0, 119), (1, 120)])[-1] == expected


def test_a_log_gets_one_line_per_interval_and_the_last_one() -> None:
    lines = shown([(1, step) for step in range(1, 36)], seconds_between_lines=10)
    assert [line.split()[1] for line in lines] == ["1/600", "11/600", "21/600", "31/600", "35/600"]


def test_a_line_is_not_printed_twice() -> None:
    assert len(shown([(0, 1), (1, 2)])) == 2


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ([(500, 1), (2, 2)], "0:16"),
        ([(500, 5), (2, 6)], "0:08"),
        ([(0, 1), (2, 2), (90, 3), (2, 4)], "0:12"),
        ([(0, 3), (60, 1), (2, 2)], "0:16"),
        ([(0, 2), (8, 6)], "0:08"),
        ([(0, 1), (1, 1), (1, 1), (2, 2)], "0:32"),
        ([(0, 1)], "-:--"),
        ([(0, 1), (2, 10)], "0:00"),
    ],
    ids=[
        "start-up",
        "resumed",
        "one slow step",
        "restarted",
        "several steps",
        "same step twice",
        "unknown",
        "done",
    ],
)
def test_the_eta_follows_the_median_step_time(updates: list[tuple[float, int]], expected: str) -> None:
    assert etas(updates, total_steps=10)[-1] == expected


def test_long_durations_have_hours() -> None:
    assert etas([(0, 0), (10, 1)], total_steps=1000)[-1] == "2:46:30"


def test_a_terminal_shows_one_live_line_below_the_messages() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressLine(console) as line:
        line.message("starting 2 workers [gpu]")
        for step in (1, 2, 3):
            line.update(step, 3, 1.0, 10.0, 0.0)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.index("starting 2 workers [gpu]") < text.index("step ")
    assert "step 3/3" in text
    assert text.count("\n") == 2


def test_an_interrupted_run_shows_its_last_step_and_propagates_the_error() -> None:
    def interrupted_run() -> None:
        with ProgressLine(console, 10) as line:
            line.update(1, 600, 1.0, 10.0, 0.0)
            line.update(2, 600, 1.0, 10.0, 0.0)
            raise KeyboardInterrupt

    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert isinstance(console.file, io.StringIO)
    assert "step 2/600" in console.file.getvalue()


def test_the_table_has_a_row_per_source_and_untruncated_paths() -> None:
    console = Console(file=io.StringIO(), width=60)
    metrics = {
        "fashion/samples": 1e4,
        "fashion/accuracy": 0.91237,
        "fashion/loss": 0.25,
        "clips/map": 0.5,
        "loss": 1.0,
    }
    console.print(result_table(metrics, {"run": "runs/" + "x" * 80, "UI": "make ui"}))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].split() == ["source", "samples", "accuracy", "loss", "map"]
    assert [line.split() for line in lines[1:4]] == [
        ["fashion", "10,000", "0.9124", "0.25"],
        ["clips", "0.5"],
        ["all", "1"],
    ]
    assert "".join(lines).count("x") == 80


def test_the_throughput_of_samples_is_measured_from_the_first_update() -> None:
    console, clock = Console(file=io.StringIO(), width=80), Clock()
    with SamplesLine(console, 0, clock) as line:
        for name, before in (("clips", 0), ("fashion", 4000)):
            line.begin(name, 10_000)
            clock.now += 100
            line.update(before + 32)
            clock.now += 2
            line.update(before + 1032)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "clips  sample 32/10,000  - samples/s  ETA -:--",
        "clips  sample 1,032/10,000  500 samples/s  ETA 0:18",
        "fashion  sample 4,032/10,000  - samples/s  ETA -:--",
        "fashion  sample 5,032/10,000  500 samples/s  ETA 0:10",
    ]


def test_waiting_is_printed_at_intervals_and_does_not_delay_the_first_step() -> None:
    console, clock = Console(file=io.StringIO(), width=40), Clock()
    with ProgressLine(console, 15, clock) as line:
        for _ in range(4):
            clock.now += 5
            line.waiting("waiting for rank 0")
        clock.now += 1
        line.update(1, 600, 1.2341, 309.6, 0.012)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [text.split()[0] for text in lines] == ["waiting", "waiting", "step"]
