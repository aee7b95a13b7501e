"""Progress display of a run: messages, one live line with an ETA, and a table of results at the end.

On a terminal the live line is redrawn in place. Elsewhere (a file, a job's log, CI) it is printed at intervals and once
at the end, so that an hour's log has hundreds of lines, not hundreds of thousands. `rich.progress` does not do that: it
prints nothing before the end without a terminal.
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
"""Name of a metric of an evaluation with a subset of the source's modalities."""

_RECENT_STEPS = 30
"""Updates behind the ETA: enough for a stable median, few enough to follow a change of speed."""

_LINE_SECONDS = 15.0
"""Time between two lines without a terminal: 240 lines an hour."""


class LiveDisplay:
    """Live line with messages above it; a context manager that restores the terminal at its end."""

    def __init__(
        self,
        console: Console | None = None,
        seconds_between_lines: float = _LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the display; nothing is shown before the first message or update.

        Args:
            console: Where to write; None means standard output.
            seconds_between_lines: Minimum time between two printings of the line without a terminal.
            clock: Monotonic clock in seconds.
        """
        self._console = console or Console(highlight=False)
        self._seconds_between_lines = seconds_between_lines
        self._clock = clock
        self._live: Live | None = None
        self._line = ""
        self._printed_line = ""
        self._printed_at = float("-inf")
        self._waited_at = float("-inf")

    def __enter__(self) -> Self:
        """Start the live line, if there is a terminal."""
        if self._console.is_terminal:
            # Training reports twice a second, so a faster refresh would show nothing new.
            self._live = Live(console=self._console, refresh_per_second=5)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live line and leave its last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._line != self._printed_line:
            self._print_line()

    def message(self, text: str) -> None:
        """Print a line above the live line, such as "starting 2 workers".

        Args:
            text: One line.
        """
        # Brackets in paths are no markup, and a log's lines must not be wrapped at rich's default of 80 columns.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show_line(self, line: str) -> None:
        """Replace the live line. Without a terminal, print it if the last one is old enough.

        Args:
            line: One line.
        """
        self._line = line
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif self._clock() - self._printed_at >= self._seconds_between_lines:
            self._print_line()

    def waiting(self, text: str) -> None:
        """Show what a job waits for. Without a terminal it is printed at intervals, and delays no printing of the line.

        Args:
            text: One line.
        """
        if self._live is not None:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif self._clock() - self._waited_at >= self._seconds_between_lines:
            self._waited_at = self._clock()
            self.message(text)

    def _print_line(self) -> None:
        self._printed_line = self._line
        self._printed_at = self._clock()
        self.message(self._line)


class ProgressLine(LiveDisplay):
    """Live line of a training run.

    Args:
        console: Where to write; None means standard output.
        seconds_between_lines: Minimum time between two printings of the line without a terminal.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        seconds_between_lines: float = _LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, seconds_between_lines, clock)
        self._step_time = _StepTimeEstimate()

    def update(
        self, step: int, total_steps: int, loss: float, samples_per_second: float, data_wait_fraction: float
    ) -> None:
        """Show the progress of training.

        Args:
            step: Optimizer steps done. It may start above 0 (a resumed run) and go back (restarted workers).
            total_steps: Steps of the whole run.
            loss: Training loss of this step.
            samples_per_second: Throughput over all ranks.
            data_wait_fraction: Fraction of the time, 0 to 1, that ranks waited for data.
        """
        self._step_time.record(step, self._clock())
        self.show_line(
            f"step {step}/{total_steps}  loss {loss:.3f}  {samples_per_second:,.0f} samples/s  "
            f"data wait {data_wait_fraction:.0%}  ETA {duration(self._step_time.seconds_for(total_steps - step))}"
        )


class SamplesLine(LiveDisplay):
    """Live line of work that processes many samples once each."""

    _label = ""
    _total = 0
    _first: tuple[int, float] | None = None

    def begin(self, label: str, total: int) -> None:
        """Begin with a new set of samples.

        Args:
            label: Name of the samples, such as that of their source.
            total: Number of samples.
        """
        self._label, self._total, self._first = label, total, None

    def update(self, done: int) -> None:
        """Show the progress.

        Args:
            done: Samples processed so far.
        """
        now = self._clock()
        # The clock starts at the first update, since start-up and samples of an earlier run do not count.
        self._first = self._first or (done, now)
        seconds = now - self._first[1]
        throughput = (done - self._first[0]) / seconds if seconds else 0.0
        left = duration((self._total - done) / throughput if throughput else None)
        shown = f"{throughput:,.{0 if throughput >= 10 else 1}f}" if throughput else "-"
        self.show_line(f"{self._label}  sample {done:,}/{self._total:,}  {shown} samples/s  ETA {left}")


class _StepTimeEstimate:
    """Estimate of the seconds per step: the median over recent updates.

    `rich.progress` uses a mean, which one checkpoint or evaluation shifts, and does not expect steps to go back.
    The clock starts at the first update, so that neither start-up nor the steps of an earlier run count.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._seconds_per_step: deque[float] = deque(maxlen=_RECENT_STEPS)

    def record(self, step: int, now: float) -> None:
        if self._last is not None and step == self._last[0]:
            # Progress is polled, so the same step comes several times.
            return
        if self._last is not None and step > self._last[0]:
            self._seconds_per_step.append((now - self._last[1]) / (step - self._last[0]))
        self._last = (step, now)

    def seconds_for(self, steps: int) -> float | None:
        """Return the estimated seconds for a number of steps; None before the second update."""
        return steps * median(self._seconds_per_step) if self._seconds_per_step else None


def result_table(metrics: Mapping[str, float], paths: Mapping[str, str]) -> Group:
    """Return a table of a run's results: a row of metrics per source, followed by paths.

    Args:
        metrics: Values by `<source>/<metric>`; each subset of modalities gets a row of its own.
        paths: Path, address or command by label, such as "run", "checkpoint" or "UI".

    Returns:
        A renderable for `rich.console.Console.print`.
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
    """Return a metric as text for a table; "-" for NaN, a value that no sample defines."""
    if value is None:
        return ""
    return "-" if math.isnan(value) else metric_text(value)


def metric_text(value: float) -> str:
    """Return a metric or a count as text, such as 0.8333 or 10,000.

    Args:
        value: Not NaN. Counts are integers above 1; a metric of exactly 1 is written like the others.
    """
    return f"{value:,.0f}" if float(value).is_integer() and value > 1 else f"{value:.4g}"


def metric_rows(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the rows of a table of results: metrics by row label, such as "clips" or "clips  audio only".

    Args:
        metrics: Values by `<source>/<metric>`; each subset of modalities gets a row of its own.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        source, _, metric = name.rpartition("/")
        subset = _SUBSET.fullmatch(metric)
        shown = f"  {subset['modalities'].replace('_and_', ' + ')} only" if subset else ""
        rows.setdefault(f"{source or 'all'}{shown}", {})[subset["metric"] if subset else metric] = value
    return rows


def duration(seconds: float | None) -> str:
    """Return a duration as text: 3:07 or 2:03:07, or -:-- if it is unknown.

    Args:
        seconds: The duration; None if it is unknown.
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
