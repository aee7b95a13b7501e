"""The random choices in decoding a sample: numbers that are handed in, so that decoders are pure functions."""

from dataclasses import dataclass

from pipelines.augment import PLAIN_VIEW, View
from pipelines.permutation import hash64


@dataclass(frozen=True)
class Chance:
    """What is left to chance in one row of a unit.

    Attributes:
        window: Where a window in time lies: 0 first, 0.5 centre, 1 last.
        seed: Of everything that takes more than one random number, such as the points of a surface.
        augment: Whether points may be changed; not in evaluation.
        view: How pictures are looked at.
    """

    window: float
    seed: int
    augment: bool
    view: View = PLAIN_VIEW


def evaluation_chance(key: str, window: float = 0.5) -> Chance:
    """Return what evaluation has in place of chance: a sample is the same each time, whatever batch it is in.

    Args:
        key: The sample's key.
        window: Where a window in time lies.
    """
    return Chance(window=window, seed=hash64(key), augment=False)
