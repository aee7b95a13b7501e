"""Which source an optimizer step learns from: a fixed cycle in which each source's share is its weight.

Weights are brought to whole numbers (to one part in `_RESOLUTION`), and one cycle of that many steps is laid out
by smooth weighted round-robin (the scheme of nginx): every step each source gains its weight, the richest is
chosen and pays the total. The cycle is the same on every rank and needs no seed; how often a source was chosen
before step s is one division and one look-up, so resuming at any step costs the same.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, inf, lcm

from perceiver_dist.errors import InternalError

_RESOLUTION = 1000


class Schedule:
    """The deterministic order in which sources take optimizer steps.

    Args:
        weights: Relative share of the steps by source name; each positive and finite.

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
        for chosen in self._cycle:
            for name, counts in self._before.items():
                counts.append(counts[-1] + (name == chosen))

    def source_at(self, step: int) -> str:
        """Return the name of the source that optimizer step `step` (from 0) learns from.

        Args:
            step: Optimizer step, from 0.
        """
        return self._cycle[step % len(self._cycle)]

    def steps_before(self, source: str, step: int) -> int:
        """Return how many of the steps 0 .. step-1 learn from `source`.

        Args:
            source: Name of the source.
            step: Number of steps counted.
        """
        cycles, rest = divmod(step, len(self._cycle))
        counts = self._before[source]
        return cycles * counts[-1] + counts[rest]


def _whole_numbers(weights: Mapping[str, float]) -> dict[str, int]:
    total = sum(weights.values())
    shares = {
        name: max(Fraction(1, _RESOLUTION), Fraction(weight / total).limit_denominator(_RESOLUTION))
        for name, weight in weights.items()
    }
    common = lcm(*(share.denominator for share in shares.values()))
    if common > _RESOLUTION:
        numbers = {name: max(1, round(share * _RESOLUTION)) for name, share in shares.items()}
    else:
        numbers = {name: int(share * common) for name, share in shares.items()}
    divisor = gcd(*numbers.values())
    return {name: number // divisor for name, number in numbers.items()}


def _smooth_round_robin(numbers: Mapping[str, int]) -> list[str]:
    total = sum(numbers.values())
    credit = dict.fromkeys(numbers, 0)
    cycle = []
    for _ in range(total):
        for name, number in numbers.items():
            credit[name] += number
        chosen = max(credit, key=lambda name: credit[name])
        credit[chosen] -= total
        cycle.append(chosen)
    return cycle
