"""Stragglers: nodes, or ranks of one node, that compute more slowly than the others for long.

All ranks take every step together, so the slowest sets the pace, and all of them show the same time per step. What
tells them apart is the time of their forward passes, since in these no rank waits for another. At ZeRO stage 3 ranks
gather each other's parameters there, so that all look equally slow, and no straggler is found.

A node is compared with the median of the ranks of all other nodes; on a single node, a rank with the other ranks. The
median, since a second straggler must not hide the first.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

SLOW_FACTOR = 1.5
"""Equal GPUs differ by a few per cent, and by a fifth when they are throttled by heat; at 1.5 a third of the other
nodes' time is lost."""
SLOW_SECONDS = 60.0
"""For how long in a row: another job that compiles or unpacks beside the run is over by then."""


@dataclass(frozen=True)
class RankTimes:
    """How long a rank takes for its own part of an optimizer step.

    Attributes:
        forward_seconds: Seconds of its forward passes per optimizer step.
        data_wait_seconds: Seconds that it waits for data per optimizer step.
    """

    forward_seconds: float
    data_wait_seconds: float


@dataclass(frozen=True)
class Place:
    """Where a rank runs.

    Attributes:
        node: Id of the Ray node.
        host: Name of the host.
    """

    node: str
    host: str


class Stragglers:
    """Slow nodes of a run.

    Args:
        clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slow_since: dict[str, float] = {}
        self._named: dict[str, str] = {}
        self._nodes: set[str] = set()

    @property
    def nodes(self) -> frozenset[str]:
        """Ids of the nodes that are slow, or were when a group of workers was last seen on them."""
        return frozenset(self._nodes)

    def add(self, times: Sequence[RankTimes], places: Mapping[int, Place]) -> list[str]:
        """Add the times of one log.

        Args:
            times: By rank.
            places: Rank -> its place; without those that are not known.

        Returns:
            A line for each node or rank that is found to be slow, or is no longer.
        """
        forward = {places[rank]: dict[int, float]() for rank in range(len(times)) if rank in places}
        for rank, place in places.items():
            if rank < len(times):
                forward[place][rank] = times[rank].forward_seconds
        if len(forward) > 1:
            names = {place.node: f"node {place.host} ({_ranks(list(of))})" for place, of in forward.items()}
            groups = {place.node: list(of.values()) for place, of in forward.items()}
            lines = self._judge(groups, names)
            self._nodes = (self._nodes - groups.keys()) | (self._named.keys() & groups.keys())
            return lines
        by_rank = {f"rank {rank}": [seconds] for of in forward.values() for rank, seconds in of.items()}
        return self._judge(by_rank, {name: name for name in by_rank})

    def _judge(self, groups: Mapping[str, list[float]], names: Mapping[str, str]) -> list[str]:
        now, lines = self._clock(), []
        ratios = {one: _ratio(groups, one) for one in groups}
        self._slow_since = {
            one: self._slow_since.get(one, now) for one, ratio in ratios.items() if ratio > SLOW_FACTOR
        }
        for one, since in self._slow_since.items():
            if now - since >= SLOW_SECONDS and one not in self._named:
                self._named[one] = names[one]
                lines.append(
                    f"{names[one]} has been slow for {now - since:.0f} s: its forward passes take {ratios[one]:.1f} "
                    "times as long as the others', and every step waits for it"
                )
        recovered = (self._named.keys() & groups.keys()) - self._slow_since.keys()
        return lines + [f"{self._named.pop(one)} is as fast as the others again" for one in sorted(recovered)]


def _ratio(groups: Mapping[str, list[float]], one: str) -> float:
    """Return how many times as long a group takes as the others."""
    others = [seconds for name, of in groups.items() if name != one for seconds in of]
    usual = median(others) if others else 0.0
    return median(groups[one]) / usual if usual > 0 else 1.0


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
