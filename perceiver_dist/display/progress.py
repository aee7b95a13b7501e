"""What a person at the terminal sees of a run: its phases, one line that moves, and a table at the end.

On a terminal the line is redrawn in place. Where output is kept (a file, a job's log, CI) it is printed anew every
few seconds and once at the end, so that a log of an hour has hundreds of lines, not hundreds of thousands.
"""

import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_SUBSET = re.compile(
    r"(?P<metric>accuracy|top_5_accuracy|loss|mean_average_precision|roc_auc|d_prime)_(?P<modalities>\w+)_only"
)
"""A metric of an evaluation that was shown some of a source's modalities only."""

_RECENT_STEPS = 30
"""Updates whose pace the ETA is computed from."""


class LiveDisplay:
    """What is shown while something runs; a context manager that restores the terminal when it is left."""

    def __init__(
        self,
        console: Console | None = None,
        seconds_between_lines: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a view; nothing is shown before the first message or update.

        Args:
            console: Where to write; None takes standard output.
            seconds_between_lines: Least time between two lines on the whole where there is no terminal.
            clock: Seconds from any fixed moment.
        """
        self._console = console or Console(highlight=False)
        self._seconds_between_lines = seconds_between_lines
        self._clock = clock
        self._live: Live | None = None
        self._line = ""
        self._printed_line = ""
        self._printed_at = float("-inf")

    def __enter__(self) -> Self:
        """Take the terminal's last lines, where there is a terminal."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=5)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state of the view standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._line != self._printed_line:
            self._print_line()

    def message(self, text: str) -> None:
        """Tell of a phase, such as "starting 2 workers", in a line of its own above the live view.

        Args:
            text: One line.
        """
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show_line(self, line: str) -> None:
        """Show where things stand, in place of what was shown before.

        Args:
            line: One line; where there is no terminal it is printed if it is time for one.
        """
        self._line = line
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif self._clock() - self._printed_at >= self._seconds_between_lines:
            self._print_line()

    def _print_line(self) -> None:
        self._printed_line = self._line
        self._printed_at = self._clock()
        self.message(self._line)


class ProgressLine(LiveDisplay):
    """The live line of a training run.

    Args:
        console: Where to write; None takes standard output.
        seconds_between_lines: Least time between two lines where there is no terminal.
        clock: Seconds from any fixed moment.
    """

    def __init__(
        self,
        console: Console | None = None,
        seconds_between_lines: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, seconds_between_lines, clock)
        self._pace = _StepTimeEstimate()

    def update(
        self, step: int, total_steps: int, loss: float, samples_per_second: float, data_wait_fraction: float
    ) -> None:
        """Show where training is.

        Args:
            step: Optimizer steps done. It may start above 0 (a resumed run) and go back (a restarted group of workers).
            total_steps: Steps of the whole run.
            loss: Training loss of this step.
            samples_per_second: Samples trained per second, over all ranks.
            data_wait_fraction: Share of the time, 0 to 1, in which ranks waited for data.
        """
        self._pace.record(step, self._clock())
        self.show_line(
            f"step {step}/{total_steps}  loss {loss:.3f}  {samples_per_second:,.0f} samples/s  "
            f"data wait {data_wait_fraction:.0%}  ETA {duration(self._pace.seconds_for(total_steps - step))}"
        )


class SamplesLine(LiveDisplay):
    """The live line of work on many samples, each once."""

    _what = ""
    _total = 0
    _first: tuple[int, float] | None = None

    def begin(self, what: str, total: int) -> None:
        """Begin with other samples.

        Args:
            what: What the samples are of.
            total: Their number.
        """
        self._what, self._total, self._first = what, total, None

    def update(self, done: int) -> None:
        """Show how far it is.

        Args:
            done: Samples that are done.
        """
        now = self._clock()
        # The clock starts at the first update: what was done before, or waited for, says nothing about the pace.
        self._first = self._first or (done, now)
        seconds = now - self._first[1]
        pace = (done - self._first[0]) / seconds if seconds else 0.0
        left = duration((self._total - done) / pace if pace else None)
        speed = f"{pace:,.{0 if pace >= 10 else 1}f}" if pace else "-"
        self.show_line(f"{self._what}  sample {done:,}/{self._total:,}  {speed} samples/s  ETA {left}")


class _StepTimeEstimate:
    """Seconds per step: the median over recent updates.

    The clock starts at the first update, so neither start-up nor steps of an earlier run count, and a single slow
    step (a checkpoint, an evaluation) does not throw the estimate off.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._seconds_per_step: deque[float] = deque(maxlen=_RECENT_STEPS)

    def record(self, step: int, now: float) -> None:
        if self._last is not None and step == self._last[0]:
            return
        if self._last is not None and step > self._last[0]:
            self._seconds_per_step.append((now - self._last[1]) / (step - self._last[0]))
        self._last = (step, now)

    def seconds_for(self, steps: int) -> float | None:
        """Seconds that so many steps will take, or None while no pace is known."""
        return steps * median(self._seconds_per_step) if self._seconds_per_step else None


def result_table(metrics: Mapping[str, float], paths: Mapping[str, str]) -> Group:
    """Lay out the results of a run: a row of metrics per source, then where things are.

    Args:
        metrics: `<source>/<metric>` and its value; what was seen of a subset of modalities gets a row of its own.
        paths: What it is ("run", "checkpoint", "UI") and where it is: a path, an address or a command.

    Returns:
        Something for `rich.console.Console.print`.
    """
    rows = metric_rows(metrics)
    columns = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    table = Table("source", show_edge=False, pad_edge=False, box=None, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right")
    for source, row in rows.items():
        table.add_row(source, *(_cell(row.get(column)) for column in columns))
    places = Table.grid(padding=(0, 2))
    places.add_column(style="bold", no_wrap=True)
    places.add_column(overflow="fold")
    for what, where in paths.items():
        places.add_row(what, Text(where))
    return Group(table, Text(), places) if rows else Group(places)


def _cell(value: float | None) -> str:
    """Return a metric as it stands in a table; "-" for one that no sample defines."""
    if value is None:
        return ""
    return "-" if math.isnan(value) else f"{value:.4g}"


def metric_rows(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the rows of a table of results: what was seen, such as "clips" or "clips  audio only", and its metrics.

    Args:
        metrics: `<source>/<metric>` and its value; what was seen of a subset of modalities gets a row of its own.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        source, _, metric = name.rpartition("/")
        subset = _SUBSET.fullmatch(metric)
        seen = f"  {subset['modalities'].replace('_and_', ' + ')} only" if subset else ""
        rows.setdefault(f"{source or 'all'}{seen}", {})[subset["metric"] if subset else metric] = value
    return rows


def duration(seconds: float | None) -> str:
    """Write a time as 3:07 or 2:03:07.

    Args:
        seconds: How long; None if it is not known.
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
