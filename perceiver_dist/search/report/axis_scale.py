"""Scales that map the values of an option to the interval from 0 to 1, for axes and for importance estimates."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.ticker import MaxNLocator

from perceiver_dist.search.report.formatting import value_text

_LOG_FROM = 10
"""Ratio of the largest to the smallest value above which a scale is logarithmic: on a linear one, the smaller values
would crowd in its lowest tenth."""
_MIN_GAP = 0.07
"""Distance, as a share of the axis, below which the labels of two values would touch."""
_MAX_INTERVALS = 6
"""Intervals between round numbers on a linear axis: each takes a sixth or more of it, well above `_MIN_GAP`."""
_DECADES_WITH_STEPS = 4
"""Powers of ten up to which 2 and 5 times each are labelled too: on three decades, these are 0.1 apart or more."""


@dataclass(frozen=True)
class AxisScale:
    """Scale of an option, from 0 for its first value to 1 for its last.

    Attributes:
        kind: linear or log for numbers; categories for everything else, including booleans.
        values: The distinct values: numbers in ascending order, or texts.
    """

    kind: Literal["linear", "log", "categories"]
    values: list[Any]

    def place(self, value: Any) -> float:
        """Return the position of a value, from 0 to 1; 0.5 if the scale has one value only.

        Args:
            value: One of `values`, or any number between the first and the last.
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
        """Return positions and their labels: every value if they are far enough apart, otherwise round numbers."""
        places = [self.place(value) for value in self.values]
        if self.kind == "categories" or all(b - a >= _MIN_GAP for a, b in itertools.pairwise(places)):
            return [(self.place(value), value_text(value)) for value in self.values]
        round_values = [value for value in self._round_values() if self.values[0] <= value <= self.values[-1]]
        return [(self.place(value), value_text(float(value))) for value in round_values]

    def _round_values(self) -> list[float]:
        low, high = self.values[0], self.values[-1]
        if self.kind == "linear":
            return list(MaxNLocator(_MAX_INTERVALS).tick_values(low, high))
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if len(decades) <= _DECADES_WITH_STEPS else (1,)
        return [digit * 10.0**decade for decade in decades for digit in digits]


def scale_of(values: Sequence[Any]) -> AxisScale:
    """Return the scale for the values of an option.

    Args:
        values: At least one value; duplicates are allowed.

    Returns:
        A linear scale if all values are numbers, a logarithmic one if they span more than a factor of 10, otherwise
        categories.
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = sorted(set(values))
        log = numbers[0] > 0 and numbers[-1] / numbers[0] > _LOG_FROM
        return AxisScale("log" if log else "linear", numbers)
    return AxisScale("categories", sorted({value_text(value) for value in values}))
