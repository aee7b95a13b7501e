"""Where the values of one option lie between the smallest and the largest: for axes, and for importances."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.ticker import MaxNLocator

from perceiver_dist.search.report.formatting import value_text

_LOG_FROM = 10
"""Ratio of the largest to the smallest value above which an option is laid out by its logarithm."""
_MIN_GAP = 0.07
"""Distance, as a share of the axis, below which the labels of two values would touch."""
_MAX_TICKS = 6
_DECADES_WITH_STEPS = 4
"""Powers of ten up to which 2 and 5 times each are written too."""


@dataclass(frozen=True)
class AxisScale:
    """Places from 0 to 1 for the values of an option.

    Attributes:
        kind: linear and log for numbers; categories for everything else, truth values too.
        values: The different values, numbers in rising order, others as text.
    """

    kind: Literal["linear", "log", "categories"]
    values: list[Any]

    def place(self, value: Any) -> float:
        """Return where a value lies; the middle where there is one value only.

        Args:
            value: One of `values`, or any number between them.
        """
        if len(self.values) == 1:
            return 0.5
        if self.kind == "categories":
            return self.values.index(value_text(value)) / (len(self.values) - 1)
        low, high, number = self.values[0], self.values[-1], value
        if self.kind == "log":
            low, high, number = math.log(low), math.log(high), math.log(number)
        return (number - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return places and their labels: every value if they are apart enough, else round numbers."""
        places = [self.place(value) for value in self.values]
        if self.kind == "categories" or all(b - a >= _MIN_GAP for a, b in itertools.pairwise(places)):
            return [(self.place(value), value_text(value)) for value in self.values]
        round_values = [value for value in self._round_values() if self.values[0] <= value <= self.values[-1]]
        return [(self.place(value), value_text(float(value))) for value in round_values]

    def _round_values(self) -> list[float]:
        low, high = self.values[0], self.values[-1]
        if self.kind == "linear":
            return list(MaxNLocator(_MAX_TICKS).tick_values(low, high))
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if len(decades) <= _DECADES_WITH_STEPS else (1,)
        return [digit * 10.0**decade for decade in decades for digit in digits]


def scale_of(values: Sequence[Any]) -> AxisScale:
    """Lay out the values that an option had.

    Args:
        values: At least one; equal ones may repeat.

    Returns:
        A scale of numbers if all of them are, by their logarithm if they span more than a factor of 10.
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = sorted(set(values))
        log = numbers[0] > 0 and numbers[-1] / numbers[0] > _LOG_FROM
        return AxisScale("log" if log else "linear", numbers)
    return AxisScale("categories", sorted({value_text(value) for value in values}))
