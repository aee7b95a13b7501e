"""Balanced plan: how often each class and each sample is drawn, as a function of the unit's number."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.units.balanced_plan import BalancedPlan, ClassDraws

CLASSES = st.lists(st.integers(-1, 4), min_size=1, max_size=40)


def plan_of(classes: list[int], balance: float, unit_size: int = 4, seed: int = 0) -> BalancedPlan:
    return BalancedPlan.of("speech", ClassDraws(np.array(classes), balance), unit_size, seed)


def drawn(plan: BalancedPlan, first: int, last: int) -> Counter[int]:
    """How often each sample is drawn in the epochs from the first to the last."""
    positions = range(first * plan.samples, (last + 1) * plan.samples)
    return Counter(plan.sample_at(position) for position in positions)


@given(classes=CLASSES, balance=st.floats(0, 1), seed=st.integers(0, 99), epoch=st.integers(0, 10**6))
def test_a_class_is_drawn_by_its_share_and_its_samples_take_turns(
    classes: list[int], balance: float, seed: int, epoch: int
) -> None:
    plan = plan_of(classes, balance, seed=seed)
    sizes = Counter(classes)
    largest = max((size for label, size in sizes.items() if label >= 0), default=0)
    epochs = 3
    counts = drawn(plan, epoch, epoch + epochs - 1)
    for label, size in sizes.items():
        of_class = [counts[sample] for sample, each in enumerate(classes) if each == label]
        expected = size if label < 0 else round(size ** (1 - balance) * largest**balance)
        # Rounding of the power's last bits may decide between two neighbours.
        assert abs(sum(of_class) / epochs - expected) <= (label >= 0)
        assert max(of_class) - min(of_class) <= 1


@given(classes=CLASSES)
def test_without_balance_every_sample_is_drawn_once_and_with_all_of_it_every_class_equally(
    classes: list[int],
) -> None:
    assert drawn(plan_of(classes, 0.0), 5, 5) == Counter(range(len(classes)))
    counts = drawn(plan_of(classes, 1.0), 5, 5)
    of_classes = Counter({label: 0 for label in classes if label >= 0})
    for sample, count in counts.items():
        if classes[sample] >= 0:
            of_classes[classes[sample]] += count
    assert len(set(of_classes.values())) <= 1


@given(classes=CLASSES, balance=st.floats(0, 1), number=st.integers(0, 10**6))
def test_a_unit_is_its_part_of_the_sequence(classes: list[int], balance: float, number: int) -> None:
    plan = plan_of(classes, balance)
    part = [plan.sample_at(position) for position in range(4 * number, 4 * number + 4)]
    assert sorted(plan.unit(number)) == sorted(part)
    assert plan_of(classes, balance).unit(number) == plan.unit(number)


def test_golden_units() -> None:
    plan = plan_of([0, 0, 0, 0, 1, 0, 0, 1], 0.5)
    assert plan.draws.by_class == {0: (6, 6), 1: (2, 3)}
    assert [plan.unit(number) for number in range(5)] == [
        [3, 5, 4, 7],
        [2, 0, 1, 4],
        [6, 0, 3, 6],
        [1, 4, 7, 2],
        [5, 0, 5, 7],
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_depends_on_the_seed(seed: int) -> None:
    classes = [number % 7 == 0 for number in range(200)]
    other = plan_of([int(each) for each in classes], 1.0, seed=2)
    plan = plan_of([int(each) for each in classes], 1.0, seed=seed)
    assert [plan.unit(number) for number in range(10)] != [other.unit(number) for number in range(10)]
