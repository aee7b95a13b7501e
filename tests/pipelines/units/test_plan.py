"""Plan: every sample once per epoch, for any sizes, and the same global batches at any world size."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.permutation
import pipelines.units.plan
from perceiver_dist.errors import UserError
from pipelines.units.plan import EvaluationPlan, TrainingPlan

SIZES = {
    "samples": st.integers(1, 50),
    "unit_size": st.integers(1, 16),
    "chunk_size": st.integers(1, 60),
    "seed": st.integers(0, 2**32),
}
GOLDEN = TrainingPlan("speech", samples=10, unit_size=4, chunk_size=3, seed=0)
LANES = 4


def sequence(plan: TrainingPlan, start: int, stop: int) -> list[int]:
    """Return a part of the endless sequence of epochs."""
    return [plan.sample_at(position) for position in range(start, stop)]


@given(**SIZES, epoch=st.integers(0, 10**6))
def test_every_epoch_contains_every_sample_once(
    samples: int, unit_size: int, chunk_size: int, seed: int, epoch: int
) -> None:
    plan = TrainingPlan("speech", samples, unit_size, chunk_size, seed)
    assert sorted(sequence(plan, epoch * samples, (epoch + 1) * samples)) == list(range(samples))


@given(**SIZES)
def test_units_cut_the_sequence_without_loss(
    samples: int, unit_size: int, chunk_size: int, seed: int
) -> None:
    plan = TrainingPlan("speech", samples, unit_size, chunk_size, seed)
    units = [plan.unit(number) for number in range(samples)]
    assert {len(unit) for unit in units} == {unit_size}
    counts = Counter(sample for unit in units for sample in unit)
    assert counts == dict.fromkeys(range(samples), unit_size)


@given(**SIZES, number=st.integers(0, 10**6))
def test_unit_is_its_part_of_the_sequence_shuffled(
    samples: int, unit_size: int, chunk_size: int, seed: int, number: int
) -> None:
    plan = TrainingPlan("speech", samples, unit_size, chunk_size, seed)
    assert sorted(plan.unit(number)) == sorted(sequence(plan, number * unit_size, (number + 1) * unit_size))


@given(numbers=st.permutations(range(12)))
def test_unit_does_not_depend_on_units_computed_before(numbers: list[int]) -> None:
    in_order = {number: replace(GOLDEN).unit(number) for number in range(12)}
    assert {number: GOLDEN.unit(number) for number in numbers} == in_order


@given(**SIZES)
def test_chunks_stay_together_in_the_sequence(
    samples: int, unit_size: int, chunk_size: int, seed: int
) -> None:
    plan = TrainingPlan("speech", samples, unit_size, chunk_size, seed)
    order = sequence(plan, 0, samples)
    for start in range(0, samples, chunk_size):
        place = order.index(start)
        chunk = range(start, min(start + chunk_size, samples))
        assert order[place : place + len(chunk)] == list(chunk)


def test_golden_sequence_and_units() -> None:
    assert sequence(GOLDEN, 0, 20) == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 6, 7, 8, 0, 1, 2, 9, 3, 4, 5]
    assert [GOLDEN.unit(number) for number in range(6)] == [
        [3, 4, 5, 6],
        [8, 0, 7, 9],
        [6, 7, 2, 1],  # The last two samples of the first epoch, the first two of the second.
        [2, 8, 0, 1],
        [3, 4, 5, 9],
        [9, 8, 6, 7],
    ]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_golden_global_batches_at_any_world_size(world_size: int) -> None:
    plan = TrainingPlan("speech", samples=37, unit_size=2, chunk_size=4, seed=0)
    batches = [
        sorted(
            sample
            for rank in range(world_size)
            for unit in range(step * LANES + rank, (step + 1) * LANES, world_size)
            for sample in plan.unit(unit)
        )
        for step in range(3)
    ]
    assert batches == [
        [12, 13, 14, 15, 16, 17, 18, 19],
        [4, 5, 6, 28, 29, 30, 31, 36],
        [7, 8, 9, 10, 11, 32, 33, 34],
    ]


@pytest.mark.parametrize("change", [{"source": "music"}, {"seed": 1}])
def test_other_sources_and_seeds_are_shuffled_differently(change: dict[str, Any]) -> None:
    plan = TrainingPlan("speech", samples=1000, unit_size=8, chunk_size=4, seed=0)
    other = replace(plan, **change)
    same = sum(a == b for a, b in zip(sequence(plan, 0, 1000), sequence(other, 0, 1000), strict=True))
    assert same < 30


def test_late_unit_costs_as_many_hashes_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int | str, ...]] = []

    def counting_hash(*values: int | str) -> int:
        calls.append(values)
        return original(*values)

    original = pipelines.permutation.hash64
    monkeypatch.setattr(pipelines.permutation, "hash64", counting_hash)
    monkeypatch.setattr(pipelines.units.plan, "hash64", counting_hash)
    # 4**8 chunks fill the range of the Feistel network, so there is no cycle walking and the count is exact.
    plan = TrainingPlan("counted", samples=4 * 4**8, unit_size=64, chunk_size=4, seed=0)
    costs = []
    for number in (0, 10**9):
        calls.clear()
        plan.unit(number)
        costs.append(len(calls))
    assert costs[1] == costs[0] < 15 * 64


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"samples": 0}, "source 'speech': has no samples; check its shards"),
        (
            {"unit_size": 0},
            "source 'speech': micro_batch is 0 and chunk_size 3; both must be at least 1",
        ),
        (
            {"chunk_size": 0},
            "source 'speech': micro_batch is 4 and chunk_size 0; both must be at least 1",
        ),
    ],
)
def test_size_below_one_is_rejected(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(GOLDEN, **sizes)
    assert str(caught.value) == message


@given(samples=st.integers(1, 200), unit_size=st.integers(1, 20), lanes=st.integers(1, 8))
def test_evaluation_contains_every_sample_once_in_a_multiple_of_the_lanes(
    samples: int, unit_size: int, lanes: int
) -> None:
    plan = EvaluationPlan(samples, unit_size, lanes)
    assert plan.units % lanes == 0
    assert plan.units < -(-samples // unit_size) + lanes
    units = [plan.unit(number) for number in range(plan.units)]
    assert [sample for unit in units for sample in unit] == list(range(samples))
    assert max(len(unit) for unit in units) <= unit_size


def test_views_are_consecutive_units_with_the_same_samples() -> None:
    plan = EvaluationPlan(samples=5, unit_size=2, lanes=1, views=3)
    assert plan.units == 9
    assert [plan.unit(number) for number in range(9)] == [[0, 1]] * 3 + [[2, 3]] * 3 + [[4]] * 3
    assert [plan.window(number) for number in range(4)] == [0, 0.5, 1, 0]
    assert EvaluationPlan(samples=5, unit_size=2, lanes=1).window(2) == 0.5
