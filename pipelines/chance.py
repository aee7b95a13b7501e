"""The random choices in decoding a sample: numbers that are handed in, so that decoders are pure functions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chance:
    """What is left to chance in one row of a unit.

    Attributes:
        window: Where a window in time lies: 0 first, 0.5 centre, 1 last.
        seed: Of everything that takes more than one random number, such as the points of a surface.
        augment: Whether a sample may be changed; not in evaluation.
    """

    window: float
    seed: int
    augment: bool
