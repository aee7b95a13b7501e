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
WINDOW_SECONDS = 60.0
"""Time after which ranks are compared, by the medians of their logs: another job that compiles or unpacks beside the
run takes less than half of it."""


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
        self._began = 0.0
        self._window: list[list[float]] = []
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
        if not self._window or len(self._window[0]) != len(times):
            self._began, self._window = self._clock(), []
        self._window.append([of_rank.forward_seconds for of_rank in times])
        if self._clock() - self._began < WINDOW_SECONDS:
            return []
        usual = [median(logged) for logged in zip(*self._window, strict=True)]
        self._window = []
        ranks: dict[Place, list[int]] = {}
        for rank, place in places.items():
            if rank < len(usual):
                ranks.setdefault(place, []).append(rank)
        if len(ranks) > 1:
            names = {place.node: f"node {place.host} ({_ranks(of)})" for place, of in ranks.items()}
            lines = self._judge(
                {place.node: [usual[rank] for rank in of] for place, of in ranks.items()}, names
            )
            self._nodes = (self._nodes - names.keys()) | (self._named.keys() & names.keys())
            return lines
        alone = {f"rank {rank}": [usual[rank]] for of in ranks.values() for rank in of}
        return self._judge(alone, {name: name for name in alone})

    def _judge(self, groups: Mapping[str, list[float]], names: Mapping[str, str]) -> list[str]:
        ratios = {one: _ratio(groups, one) for one in groups}
        slow = {one for one, ratio in ratios.items() if ratio > SLOW_FACTOR}
        lines = [
            f"{names[one]} is slow: its forward passes have taken {ratios[one]:.1f} times as long as the others' for "
            f"{WINDOW_SECONDS:.0f} s, and every step waits for it"
            for one in sorted(slow - self._named.keys())
        ]
        recovered = sorted((self._named.keys() & groups.keys()) - slow)
        lines += [f"{self._named[one]} is as fast as the others again" for one in recovered]
        self._named = {one: self._named.get(one) or names[one] for one in slow} | {
            one: name for one, name in self._named.items() if one not in groups
        }
        return lines


def _ratio(groups: Mapping[str, list[float]], one: str) -> float:
    """Return how many times as long a group takes as the others."""
    others = [seconds for name, of in groups.items() if name != one for seconds in of]
    usual = median(others) if others else 0.0
    return median(groups[one]) / usual if usual > 0 else 1.0


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
