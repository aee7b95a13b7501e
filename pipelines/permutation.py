"""Random numbers and permutations computed from their position, so that nothing needs to be stored or replayed.

`hash64` is the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over a running combination of its arguments.
`Permutation` shuffles range(n) in O(1) memory: a balanced Feistel network permutes the smallest range of an even
number of bits that holds n, and values that fall outside range(n) are sent through it again ("cycle walking",
Black and Rogaway 2002) until they fall inside. Since the network is a bijection of the larger range, following
its cycle from a point inside always returns inside, and two points never meet: the walk is a bijection of
range(n). The larger range is less than 4n, so fewer than four walks are needed on average.

Both are integer arithmetic (and BLAKE2 for texts): the values do not depend on a numpy or Python version, and
tests pin them.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

from perceiver_dist.errors import InternalError

_MASK = (1 << 64) - 1
_ROUNDS = 6


def hash64(*values: int | str) -> int:
    """Mix integers and strings into 64 well-spread bits.

    Args:
        values: What identifies the random number wanted, for example (seed, source name, unit, row).

    Returns:
        An integer in [0, 2**64), the same on every machine and in every version.
    """
    state = 0
    for value in values:
        word = value if isinstance(value, int) and 0 <= value <= _MASK else _digest(value)
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


@lru_cache(maxsize=1024, typed=True)
def _digest(value: int | str) -> int:
    """Bring what is no 64-bit word to one, so that "a" is not 97 and -1 is not 2**64 - 1."""
    text = f"{type(value).__name__} {value}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(*values: int | str) -> float:
    """Return a number in [0, 1) that depends on `values` only; see `hash64`.

    Args:
        values: What identifies the random number wanted.
    """
    return (hash64(*values) >> 11) * 2.0**-53


@dataclass(frozen=True)
class Permutation:
    """A pseudo-random bijection of range(size) with O(1) memory and O(1) time for either direction.

    Attributes:
        size: Number of elements, at least 1.
        key: Which of the permutations; for example `hash64(seed, source, epoch)`.
    """

    size: int
    key: int

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            InternalError: There is nothing to permute.
        """
        if self.size < 1:
            raise InternalError(f"cannot shuffle {self.size} elements: a source needs at least one sample")

    @cached_property
    def _half_bits(self) -> int:
        return max(1, ((self.size - 1).bit_length() + 1) // 2)

    @cached_property
    def _round_keys(self) -> list[int]:
        return [hash64(self.key, number) for number in range(_ROUNDS)]

    def __call__(self, position: int) -> int:
        """Return the element at `position` of the shuffled range, 0 <= position < size."""
        value = self._forward(position)
        while value >= self.size:
            value = self._forward(value)
        return value

    def position_of(self, element: int) -> int:
        """Return the position at which `element` stands: the inverse of calling the permutation.

        Args:
            element: 0 <= element < size.
        """
        value = self._backward(element)
        while value >= self.size:
            value = self._backward(value)
        return value

    def _forward(self, value: int) -> int:
        half = self._half_bits
        mask = (1 << half) - 1
        left, right = value >> half, value & mask
        for key in self._round_keys:
            left, right = right, left ^ (hash64(key, right) & mask)
        return left << half | right

    def _backward(self, value: int) -> int:
        half = self._half_bits
        mask = (1 << half) - 1
        left, right = value >> half, value & mask
        for key in reversed(self._round_keys):
            left, right = right ^ (hash64(key, left) & mask), left
        return left << half | right
