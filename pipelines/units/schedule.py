"""Schedule of sources over optimizer steps: a fixed cycle in which each source's share is its weight.

Drawing a source at random at each step would meet the weights on average only, and counting a source's earlier steps
would mean drawing them all again. Here weights become whole numbers w (to one part in `_RESOLUTION`), and one cycle of
W = sum(w) steps is computed once, by the smooth weighted round-robin of nginx (ngx_http_upstream_round_robin.c): at
each step every source gains w credits, and the source with the most credits is chosen and pays W.

In a cycle each source is chosen exactly w times, evenly spread. Proof of the count: credits sum to 0 after every step.
Before the chosen source pays, credits sum to W and it has the most, a positive number. So no credit ever falls to -W or
below. After W steps a source has W * w - W * (times chosen) credits, a multiple of W above -W, so at least 0. Their sum
is 0, so each of them is 0: the source was chosen w times.

The cycle is the same on every rank and needs no seed. The number of a source's steps before step s is one division and
one look-up (`steps_before`), so resuming costs the same at any step. Its product with the lanes is the number of the
first unit of step s: see `pipelines/units/plan.py`.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, inf, lcm

from perceiver_dist.errors import InternalError

_RESOLUTION = 1000
"""Shares are met to about 0.1 %, in cycles of at most about 1,000 steps; a run has several."""


class Schedule:
    """The deterministic assignment of optimizer steps to sources.

    Args:
        weights: Relative share of the steps, by source name; positive and finite.

    Raises:
        InternalError: There is no source, or a weight is not positive and finite.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not weights:
            raise InternalError("sources is empty: name at least one source to train on")
        for name, weight in weights.items():
            if not 0 < weight < inf:
                raise InternalError(f"source '{name}': weight is {weight}, must be a number above 0")
        self._cycle = _smooth_round_robin(_whole_numbers(weights))
        self._before = {name: [0] for name in weights}
        self._places: dict[str, list[int]] = {name: [] for name in weights}
        for place, chosen in enumerate(self._cycle):
            self._places[chosen].append(place)
            for name, counts in self._before.items():
                counts.append(counts[-1] + (name == chosen))

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of the weights."""
        return list(self._before)

    def source_at(self, step: int) -> str:
        """Return the name of the source that an optimizer step trains on.

        Args:
            step: Number of the optimizer step, from 0.
        """
        return self._cycle[step % len(self._cycle)]

    def steps_before(self, source: str, step: int) -> int:
        """Return how many of the first `step` optimizer steps train on a source.

        Args:
            source: Name of the source.
            step: Number of optimizer steps to count.
        """
        cycles, rest = divmod(step, len(self._cycle))
        counts = self._before[source]
        return cycles * counts[-1] + counts[rest]

    def step_of(self, source: str, number: int) -> int:
        """Return the optimizer step that is a source's step `number`, so that `steps_before` of it is `number`.

        Args:
            source: Name of the source.
            number: Number of the step among those of the source, from 0.
        """
        places = self._places[source]
        cycles, rest = divmod(number, len(places))
        return cycles * len(self._cycle) + places[rest]


def _whole_numbers(weights: Mapping[str, float]) -> dict[str, int]:
    """Return whole numbers in proportion to the weights, at least 1 each, so that no source is starved.

    Fractions with small denominators, such as 0.7 and 0.3, are met exactly; others are rounded to `_RESOLUTION`.
    """
    total = sum(weights.values())
    shares = {
        name: max(Fraction(1, _RESOLUTION), Fraction(weight / total).limit_denominator(_RESOLUTION))
        for name, weight in weights.items()
    }
    common = lcm(*(share.denominator for share in shares.values()))
    if common > _RESOLUTION:  # An exact cycle would be too long.
        numbers = {name: max(1, round(share * _RESOLUTION)) for name, share in shares.items()}
    else:
        numbers = {name: int(share * common) for name, share in shares.items()}
    divisor = gcd(*numbers.values())  # The shortest cycle with these shares.
    return {name: number // divisor for name, number in numbers.items()}


def _smooth_round_robin(numbers: Mapping[str, int]) -> list[str]:
    total = sum(numbers.values())
    credit = dict.fromkeys(numbers, 0)
    cycle = []
    for _ in range(total):
        for name, number in numbers.items():
            credit[name] += number
        chosen = max(credit, key=lambda name: credit[name])  # On a tie, the source that is configured first.
        credit[chosen] -= total
        cycle.append(chosen)
    return cycle
