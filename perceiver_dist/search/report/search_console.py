"""Terminal display of a search: its progress, the running trials, and the ranking at the end.

On a terminal this is a table, redrawn in place. In a log it is a line for every trial that ends, and one for the whole
search every 30 seconds.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from perceiver_dist.display.progress import LiveDisplay, duration
from perceiver_dist.search.report.formatting import quantity, ranked, values_text
from perceiver_dist.search.report.write_report import finding
from perceiver_dist.search.study.search_record import SearchRecord, Trial

_ENDED_SHOWN = 3
"""Trials that the live table shows after they have ended, so that it stays short beside the running ones."""
_RANKING_SHOWN = 10
"""Trials in the final table, which so fits on a small terminal; the report lists all of them."""


@dataclass(frozen=True)
class RunningTrial:
    """Progress of a running trial.

    Attributes:
        step: Optimizer steps taken.
        steps: Total optimizer steps of the trial.
    """

    step: int
    steps: int


class SearchDisplay(LiveDisplay):
    """Live display of a search.

    Args:
        console: Console to write to; None for standard output.
        seconds_between_lines: Min time between two lines on the whole search if there is no terminal.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        seconds_between_lines: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, seconds_between_lines, clock)
        self._rate = _FlopsRate()
        self._ended: list[int] | None = None

    def update(self, record: SearchRecord, running: Mapping[int, RunningTrial]) -> None:
        """Show the progress of the search, and report trials that have ended since the last update.

        Trials that have ended before the first update are not reported: an earlier start of the search did.

        Args:
            record: Record of the search.
            running: Number of each running trial -> its progress.
        """
        newly_ended = self._newly_ended(record)
        self._rate.record(_flops_spent(record, running), self._clock())
        headline = [_counts(record), _best_so_far(record), *self._progress(record, running)]
        self._line = "  ".join(headline)
        if self._live is not None:
            self._live.update(_live_table(record, running, headline, (self._ended or [])[-_ENDED_SHOWN:]))
            return
        for trial in newly_ended:
            self.message(_ended_line(trial, record))
        if self._clock() - self._printed_at >= self._seconds_between_lines:
            self._print_line()

    def _newly_ended(self, record: SearchRecord) -> list[Trial]:
        ended = [trial for trial in record.trials if trial.state != "running"]
        if self._ended is None:
            self._ended = [trial.number for trial in ended]
            return []
        new = [trial for trial in ended if trial.number not in self._ended]
        self._ended += [trial.number for trial in new]
        return new

    def _progress(self, record: SearchRecord, running: Mapping[int, RunningTrial]) -> list[str]:
        """Return phrases for FLOPs, elapsed time and ETA."""
        return [
            f"{quantity(_flops_spent(record, running))} of {quantity(_total_flops(record), 'FLOPs')}",
            f"elapsed {duration(self._rate.elapsed)}",
            f"ETA {duration(self._rate.seconds_for(_remaining_flops(record, running)))}",
        ]


class _FlopsRate:
    """Mean FLOPs per second since the first update, so without those that an earlier start of the search spent.

    Not rich.progress, whose rate is that of a sliding window of at most 1000 updates: a search of hours needs its mean.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._spent = 0.0
        self.elapsed = 0.0

    def record(self, spent: float, now: float) -> None:
        self._first = self._first or (spent, now)
        self._spent = spent - self._first[0]
        self.elapsed = now - self._first[1]

    def seconds_for(self, flops: float) -> float | None:
        """Return the seconds that a number of FLOPs will take; None as long as the rate is unknown."""
        return flops * self.elapsed / self._spent if self._spent > 0 and self.elapsed > 0 else None


def final_table(record: SearchRecord) -> Group:
    """Return the result of a search for printing: the best ten trials, and the finding in one sentence.

    Args:
        record: Record of the search.

    Returns:
        A renderable for `rich.console.Console.print`.
    """
    table = Table("trial", "state", show_edge=False, pad_edge=False, box=None, header_style="bold")
    for column in ("score", "parameters", "FLOPs/sample", "steps"):
        table.add_column(column, justify="right")
    table.add_column("values", overflow="fold")
    for trial in ranked(record.trials)[:_RANKING_SHOWN]:
        table.add_row(
            trial.name,
            trial.state,
            _score(trial),
            quantity(trial.cost.parameters),
            quantity(trial.cost.flops_per_sample),
            f"{trial.step}/{trial.cost.steps}",
            Text(values_text(trial, record)),
            style="bold" if trial is record.best else "",
        )
    return Group(table, Text(), Text(finding(record)))


def _flops_spent(record: SearchRecord, running: Mapping[int, RunningTrial]) -> float:
    return sum(_trial_flops_spent(trial, running) for trial in record.trials)


def _trial_flops_spent(trial: Trial, running: Mapping[int, RunningTrial]) -> float:
    now = running.get(trial.number)
    return trial.cost.training_flops * now.step / now.steps if now else trial.training_flops


def _undrawn_trials(record: SearchRecord) -> int:
    """Return the number of trials that are not drawn yet."""
    return max(int(record.options["trials"]) - len(record.trials), 0)


def _mean_cost(record: SearchRecord) -> float:
    costs = [trial.cost.training_flops for trial in record.trials]
    return sum(costs) / len(costs) if costs else 0.0


def _total_flops(record: SearchRecord) -> float:
    """Return the FLOPs of all trials if none is stopped early; trials not drawn yet count with the mean."""
    return (len(record.trials) + _undrawn_trials(record)) * _mean_cost(record)


def _remaining_flops(record: SearchRecord, running: Mapping[int, RunningTrial]) -> float:
    """Estimate the remaining FLOPs.

    Running trials count to their end, and trials not drawn yet for the mean share that ended trials have trained.
    """
    ended = [trial for trial in record.trials if trial.state != "running"]
    share = sum(trial.step / trial.cost.steps for trial in ended) / len(ended) if ended else 1.0
    unspent = sum(
        trial.cost.training_flops - _trial_flops_spent(trial, running)
        for trial in record.trials
        if trial.state == "running"
    )
    return unspent + _undrawn_trials(record) * share * _mean_cost(record)


def _counts(record: SearchRecord) -> str:
    states = [trial.state for trial in record.trials]
    ended = len(states) - states.count("running")
    return (
        f"search {record.options['name']}: {ended} of {len(states) + _undrawn_trials(record)} done: "
        f"{states.count('completed')} completed, {states.count('stopped')} stopped, "
        f"{states.count('failed')} failed; {states.count('running')} running"
    )


def _best_so_far(record: SearchRecord) -> str:
    best, baseline = record.best, record.baseline
    text = f"best {best.name} {_score(best)}" if best else "no trial completed yet"
    return f"{text}, baseline {_score(baseline)}" if baseline and baseline.score is not None else text


def _score(trial: Trial) -> str:
    return "" if trial.score is None else f"{trial.score:.3f}"


def _ended_line(trial: Trial, record: SearchRecord) -> str:
    """Return the line for an ended trial: "trial-003 stopped at evaluation 1: score 0.412 (latents 64, width 32)"."""
    outcome: str = trial.state
    if trial.state == "failed":
        outcome += f" at step {trial.step}: {trial.reason}"
    elif trial.evaluations:
        at = f" at evaluation {trial.evaluations[-1].number}" if trial.state == "stopped" else ""
        outcome += f"{at}: score {_score(trial)}"
    return f"{trial.name} {outcome} ({values_text(trial, record)})"


def _live_table(
    record: SearchRecord, running: Mapping[int, RunningTrial], headline: list[str], ended: list[int]
) -> Group:
    table = Table(show_edge=False, pad_edge=False, box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    table.add_column()
    for trial in record.trials:
        if trial.state == "running":
            step = running[trial.number].step if trial.number in running else trial.step
            score = _score(trial) or "-"
            table.add_row(trial.name, f"{step}/{trial.cost.steps}", score, _one_line(trial, record))
    for number in ended:
        trial = record.trials[number]
        table.add_row(trial.name, trial.state, _score(trial) or "-", _one_line(trial, record), style="dim")
    counts, best, *progress = headline
    return Group(Text(counts, style="bold"), Text("  ".join([best, *progress])), table)


def _one_line(trial: Trial, record: SearchRecord) -> Text:
    """Return the values of a trial as a cell that is truncated if the terminal is narrow."""
    return Text(values_text(trial, record), no_wrap=True, overflow="ellipsis")
