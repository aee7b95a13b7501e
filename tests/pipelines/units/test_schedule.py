"""Schedule: sources get the shares that their weights say, and earlier steps are counted without visiting them."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.errors import UserError
from pipelines.units.schedule import Schedule

WHOLE_WEIGHTS = st.dictionaries(st.text(min_size=1, max_size=5), st.integers(1, 60), min_size=1, max_size=5)
WEIGHTS = st.dictionaries(
    st.text(min_size=1, max_size=5), st.floats(1e-3, 1e3) | st.integers(1, 100), min_size=1, max_size=5
)


@given(weights=WHOLE_WEIGHTS, cycle=st.integers(0, 3))
def test_every_cycle_meets_the_weights_exactly(weights: dict[str, int], cycle: int) -> None:
    length = sum(weights.values())
    schedule = Schedule(weights)
    steps = [schedule.source_at(step) for step in range(cycle * length, (cycle + 1) * length)]
    assert {name: steps.count(name) for name in weights} == weights


@given(weights=WEIGHTS, step=st.integers(0, 5000))
def test_steps_before_counts_the_steps_of_a_source(weights: dict[str, float], step: int) -> None:
    schedule = Schedule(weights)
    taken = [schedule.source_at(earlier) for earlier in range(step)]
    assert {name: schedule.steps_before(name, step) for name in weights} == {
        name: taken.count(name) for name in weights
    }


@given(weights=WEIGHTS)
def test_shares_are_close_for_weights_without_a_small_common_denominator(weights: dict[str, float]) -> None:
    schedule = Schedule(weights)
    for name, weight in weights.items():
        share = schedule.steps_before(name, 10**9) / 10**9
        assert share == pytest.approx(weight / sum(weights.values()), abs=0.006)


def test_source_of_tiny_weight_is_scheduled() -> None:
    schedule = Schedule({"image": 1.0, "audio": 1e-9})
    assert schedule.steps_before("audio", 1001) == 1


def test_golden_cycle() -> None:
    schedule = Schedule({"image": 3, "audio": 2, "video": 1})
    assert [schedule.source_at(step) for step in range(8)] == [
        "image",
        "audio",
        "image",
        "video",
        "audio",
        "image",
        "image",
        "audio",
    ]


@pytest.mark.parametrize(("weights", "every"), [({"a": 0.7, "b": 0.3}, 10), ({"a": 1 / 3, "b": 2 / 3}, 3)])
def test_simple_fractions_are_met_exactly(weights: Mapping[str, float], every: int) -> None:
    schedule = Schedule(weights)
    assert schedule.steps_before("a", every) == round(weights["a"] * every)
    assert [schedule.source_at(step) for step in range(every)] == [
        schedule.source_at(step) for step in range(every, 2 * every)
    ]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weight_must_be_positive_and_finite(weight: float) -> None:
    with pytest.raises(UserError, match=f"^source 'b': weight is {weight}, must be a number above 0$"):
        Schedule({"a": 1.0, "b": weight})


def test_schedule_of_no_sources_is_rejected() -> None:
    with pytest.raises(UserError, match=r"^sources is empty: name at least one source to train on$"):
        Schedule({})
