"""The randomness in decoding a sample: numbers that are passed in, so that decoders are pure functions."""

from dataclasses import dataclass

from pipelines.augment.image_transform import NO_TRANSFORM, ImageTransform
from pipelines.permutation import hash64


@dataclass(frozen=True)
class SampleRandomness:
    """The random choices of one row of a unit.

    Attributes:
        window: Where a window in time lies: 0 first, 0.5 centre, 1 last.
        seed: Of everything that takes more than one random number, such as the points of a surface.
        augment: Whether points may be changed; not in evaluation.
        transform: How pictures are cropped and changed.
    """

    window: float
    seed: int
    augment: bool
    transform: ImageTransform = NO_TRANSFORM


def evaluation_randomness(key: str, window: float = 0.5) -> SampleRandomness:
    """Return evaluation's fixed choices: a sample is decoded the same way each time, whatever batch it is in.

    Args:
        key: The sample's key.
        window: Where a window in time lies.
    """
    return SampleRandomness(window=window, seed=hash64(key), augment=False)
