"""Stragglers: slow nodes are named once they have been slow for long, and again when they have recovered."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.training.liveness.stragglers import (
    SLOW_FACTOR,
    WINDOW_SECONDS,
    Place,
    RankTimes,
    Stragglers,
)

NODES = ("a", "b", "c")
"""Of two ranks each."""
PLACES = {rank: Place(NODES[rank // 2], f"gpu-{NODES[rank // 2]}") for rank in range(6)}
ONE_NODE = dict.fromkeys(range(4), Place("a", "gpu-a"))


class Log:
    """Stragglers with a clock of their own, with a log every ten seconds."""

    def __init__(self, places: dict[int, Place]) -> None:
        self.now, self.places = 0.0, places
        self.found = Stragglers(lambda: self.now)

    def add(self, *seconds: float) -> list[str]:
        lines = self.found.add([RankTimes(one, 0.0) for one in seconds], self.places)
        self.now += 10
        return lines

    def add_for(self, duration: float, *seconds: float) -> list[str]:
        return [line for _ in range(int(duration / 10)) for line in self.add(*seconds)]


def test_a_slow_node_is_named_once_with_its_ranks_and_left_out() -> None:
    log = Log(PLACES)
    assert log.add_for(WINDOW_SECONDS, 1, 1, 1, 1, 2, 2) == []
    assert log.found.nodes == frozenset()
    (line,) = log.add_for(300, 1, 1, 1, 1, 2, 2)
    assert line.startswith(
        "node gpu-c (ranks 4, 5) is slow: its forward passes have taken 2.0 times as long as"
    )
    assert log.found.nodes == {"c"}


def test_a_node_that_recovers_is_said_and_no_longer_left_out() -> None:
    log = Log(PLACES)
    log.add_for(100, 1, 1, 2, 2, 1, 1)
    assert log.add_for(100, 1, 1, 1, 1, 1, 1) == ["node gpu-b (ranks 2, 3) is as fast as the others again"]
    assert log.found.nodes == frozenset()


def test_a_node_that_was_left_out_stays_so() -> None:
    log = Log(PLACES)
    log.add_for(100, 1, 1, 2, 2, 1, 1)
    log.places = {0: PLACES[0], 1: PLACES[1], 2: PLACES[4], 3: PLACES[5]}
    assert log.add_for(300, 1, 1, 1, 1) == []
    assert log.found.nodes == {"b"}


def test_less_than_half_of_the_time_is_not_enough_and_more_is() -> None:
    rarely, often = Log(PLACES), Log(PLACES)
    for _ in range(10):
        assert rarely.add_for(20, 9, 9, 1, 1, 1, 1) == []
        assert rarely.add_for(40, 1, 1, 1, 1, 1, 1) == []
    lines = [
        line for _ in range(10) for line in often.add_for(40, 9, 9, 1, 1, 1, 1) + often.add(1, 1, 1, 1, 1, 1)
    ]
    assert len(lines) == 1


def test_a_slow_rank_of_a_single_node_is_named_and_its_node_kept() -> None:
    log = Log(ONE_NODE)
    (line,) = log.add_for(100, 1, 3, 1, 1)
    assert line.startswith("rank 1 is slow: its forward passes have taken 3.0 times as long")
    assert log.found.nodes == frozenset()


def test_two_slow_nodes_of_five_do_not_hide_each_other() -> None:
    log = Log({rank: Place(str(rank), f"gpu-{rank}") for rank in range(5)})
    lines = log.add_for(100, 2, 1, 1, 2, 1)
    assert [line.split(" is slow")[0] for line in lines] == ["node gpu-0 (rank 0)", "node gpu-3 (rank 3)"]


@pytest.mark.parametrize("places", [{}, {0: Place("a", "gpu-a")}])
def test_ranks_alone_or_without_a_known_place_are_not_slow(places: dict[int, Place]) -> None:
    assert Log(places).add_for(100, 5, 1) == []


@given(
    st.lists(st.lists(st.floats(1.0, SLOW_FACTOR - 0.01), min_size=6, max_size=6), min_size=8, max_size=12)
)
def test_nodes_that_differ_by_less_than_the_factor_are_never_named(logs: Sequence[Sequence[float]]) -> None:
    log = Log(PLACES)
    assert [line for times in logs for line in log.add(*times)] == []
