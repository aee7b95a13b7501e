"""Random access permutations: bijective, without visible structure, the same in every version."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.errors import InternalError
from pipelines.permutation import Permutation, hash64, uniform

Values = tuple[int | str, ...]
VALUES = st.lists(st.integers(-(2**80), 2**80) | st.text(max_size=12), min_size=1, max_size=4).map(tuple)


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection_and_position_of_is_its_inverse(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    shuffled = [permutation(position) for position in range(size)]
    assert sorted(shuffled) == list(range(size))
    assert [permutation.position_of(element) for element in shuffled[:100]] == list(range(min(size, 100)))


def test_golden_permutations() -> None:
    assert [Permutation(10, 0)(i) for i in range(10)] == [8, 1, 3, 5, 4, 6, 0, 9, 2, 7]
    assert [Permutation(10, 1)(i) for i in range(10)] == [9, 7, 2, 3, 0, 1, 5, 6, 8, 4]


def test_golden_hashes() -> None:
    assert hash64(0) == 16294208416658607535
    assert hash64(1, 2) == 13608149317741381227
    assert hash64("speech", 0) == 3130701421613793412
    assert hash64(-1) == 6744898483010778213
    assert uniform(0, "a") == 0.017479916182513766


@given(first=VALUES, second=VALUES)
def test_hashes_differ_if_and_only_if_the_values_differ(first: Values, second: Values) -> None:
    assert (hash64(*first) == hash64(*second)) == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, 2), (2, 1)),
        ((-1,), (1,)),
        ((-1,), (2**64 - 1,)),
        ((2**64,), (0, 1)),
        (("a",), (97,)),
        (("a",), ("a\0",)),
        (("ab", "c"), ("a", "bc")),
        (("eightlet", "ters"), ("eightletters",)),
    ],
)
def test_hashes_of_similar_values_differ(first: Values, second: Values) -> None:
    assert hash64(*first) != hash64(*second)


@pytest.mark.parametrize("key", range(5))
def test_elements_move_as_far_as_in_a_random_permutation(key: int) -> None:
    size = 3000
    permutation = Permutation(size, key)
    moved = np.array([abs(permutation(i) - i) for i in range(size)])
    assert moved.mean() == pytest.approx(size / 3, rel=0.05)  # E|x - y| of two uniform numbers is 1/3.


@pytest.mark.parametrize("key", range(5))
def test_elements_of_each_tenth_spread_evenly_over_all_tenths(key: int) -> None:
    size, parts = 4000, 10
    permutation = Permutation(size, key)
    counts = Counter((i * parts // size, permutation(i) * parts // size) for i in range(size))
    expected = size / parts**2
    chi_square = sum((counts[row, column] - expected) ** 2 / expected for row, column in np.ndindex(10, 10))
    assert chi_square < 140  # 81 degrees of freedom: 140 is exceeded once in 20,000 random permutations.


@pytest.mark.parametrize("size", [3, 4])
def test_every_order_of_a_small_range_is_about_equally_frequent(size: int) -> None:
    counts = Counter(
        tuple(Permutation(size, hash64(key))(i) for i in range(size)) for key in range(100 * size**2)
    )
    expected = 100 * size**2 / len(list(permutations(range(size))))
    assert len(counts) == len(list(permutations(range(size))))
    assert max(counts.values()) < 2 * expected


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    values = np.array([uniform(0, "speech", number) for number in range(2000)])
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert counts.sum() == 2000
    assert counts.min() > 150


def test_permutation_of_nothing_is_rejected() -> None:
    with pytest.raises(
        InternalError, match=r"^cannot shuffle 0 elements: a source needs at least one sample$"
    ):
        Permutation(0, 1)
