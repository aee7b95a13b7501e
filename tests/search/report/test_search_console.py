"""Terminal display of a search: live table, lines of a log, a resumed search, and the ranking."""

import io
from collections.abc import Iterable

from records import record_of_search
from rich.console import Console

from perceiver_dist.search.report.search_console import RunningTrial, SearchDisplay, final_table
from perceiver_dist.search.study.search_record import SearchRecord

MIDWAY = {12: RunningTrial(750, 1500), 13: RunningTrial(300, 1500)}


class Clock:
    """Clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(
    updates: Iterable[tuple[float, SearchRecord, dict[int, RunningTrial]]], seconds_between_lines: float = 0
) -> list[str]:
    """Return the lines of a log for updates of (seconds since the previous one, record, running trials)."""
    file, clock = io.StringIO(), Clock()
    with SearchDisplay(Console(file=file, width=40), seconds_between_lines, clock) as display:
        for seconds, record, running in updates:
            clock.now += seconds
            display.update(record, running)
    return file.getvalue().splitlines()


def terminal_text(record: SearchRecord, running: dict[int, RunningTrial], width: int = 120) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with SearchDisplay(console) as display:
        display.message("starting [gpu]")
        display.update(record, running)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_line_holds_counts_scores_flops_and_times() -> None:
    assert shown([(0, record_of_search(), MIDWAY)]) == [
        "search shapes: 12 of 16 done: 6 completed, 5 stopped, 1 failed; 2 running  best trial-006 0.887, "
        "baseline 0.817  77.2 T of 175 TFLOPs  elapsed 0:00  ETA -:--"
    ]


def test_every_ended_trial_is_reported_once() -> None:
    updates: list[tuple[float, SearchRecord, dict[int, RunningTrial]]] = [
        (1.0, record_of_search(number), {}) for number in (1, 2, 3, 3, 4)
    ]
    assert [line for line in shown(updates, 1e9) if line.startswith("trial")] == [
        "trial-001 stopped at evaluation 1: score 0.466 "
        "(latents 16, width 96, cross_attends 1, learning_rate 0.00024, share_cross_attends all)",
        "trial-002 completed: score 0.868 (latents 64, width 32, learning_rate 0.0017, share_cross_attends none)",
        "trial-003 failed at step 120: out of memory on a rank "
        "(latents 128, width 128, cross_attends 1, learning_rate 0.0089)",
    ]


def test_trials_that_ended_in_an_earlier_start_are_not_reported() -> None:
    assert [line[:6] for line in shown([(0, record_of_search(12), {})])] == ["search"]


def test_a_log_has_a_line_per_interval_and_always_the_last_one() -> None:
    lines = shown([(10, record_of_search(1), {})] * 6 + [(10, record_of_search(14), {})], 30)
    assert [line.split("elapsed ")[1].split()[0] for line in lines if "elapsed" in line] == [
        "0:00",
        "0:30",
        "1:00",
    ]
    lines = shown([(10, record_of_search(13), {}), (10, record_of_search(14), {})], 30)
    assert lines[-1].startswith("search shapes: 12 of 16 done")
    assert "2 running" in lines[-1]


def test_the_eta_uses_the_rate_of_this_start_and_the_share_that_ended_trials_trained() -> None:
    record = record_of_search(2)
    record.options["trials"] = 4
    cost = record.trials[0].cost
    for trial in record.trials:
        trial.cost = cost
    record.trials[0].state, record.trials[0].step = "running", 300
    halves = [{0: RunningTrial(300, 1500)}, {0: RunningTrial(750, 1500)}]
    eta = shown([(500, record, halves[0]), (90, record, halves[1])])[-1].split("ETA ")[1]
    # 450 steps took 90 s. 750 are left, and 2 trials are not drawn yet: 500 steps each, as the stopped one.
    assert eta == "5:50"


def test_the_eta_is_unknown_without_progress() -> None:
    assert shown([(0, record_of_search(), {}), (60, record_of_search(), {})])[-1].endswith("ETA -:--")


def test_a_terminal_shows_running_trials_and_the_last_ended_ones() -> None:
    text = terminal_text(record_of_search(), MIDWAY)
    assert "starting [gpu]" in text
    assert "trial-012   750/1500  0.759  latents 64, width 32, cross_attends 4, learning_rate 0.0019" in text
    assert "trial-013   300/1500      -  width 128" in text
    assert [name for name in ("trial-008", "trial-009", "trial-010", "trial-011") if name in text] == [
        "trial-009",
        "trial-010",
        "trial-011",
    ]


def test_a_narrow_terminal_truncates_only_the_values() -> None:
    rows = [line for line in terminal_text(record_of_search(), MIDWAY, 50).splitlines() if "/1500" in line]
    assert [row.split("  ")[0] for row in rows[-2:]] == ["trial-012", "trial-013"]
    assert all("…" in row for row in rows[-2:])


def test_a_search_without_trials_is_shown() -> None:
    line = shown([(0, record_of_search(0), {})])[-1]
    assert "0 of 16 done" in line
    assert "no trial completed yet" in line


def test_the_final_table_has_ten_trials_and_the_finding() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(final_table(record_of_search()))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line[:9] for line in lines[1:4]] == ["trial-006", "trial-002", "trial-011"]
    assert sum(line.startswith("trial-") for line in lines) == 10
    assert "So far trial-006 beats the baseline" in console.file.getvalue()
