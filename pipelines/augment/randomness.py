"""Random choices of a sample. Decoders receive them as an argument, which keeps decoders pure functions."""

from dataclasses import dataclass

from pipelines.augment.image_transform import NO_TRANSFORM, ImageTransform
from pipelines.permutation import hash64


@dataclass(frozen=True)
class SampleRandomness:
    """The random choices of one sample in one row of a unit.

    Attributes:
        window: Position of the window in time, from 0 (first) to 1 (last); 0.5 is the centre.
        seed: Seed for whatever needs more than one random number, such as the points on a surface.
        augment: Whether point clouds are augmented; false in evaluation.
        transform: Augmentation of pictures.
    """

    window: float
    seed: int
    augment: bool
    transform: ImageTransform = NO_TRANSFORM


def evaluation_randomness(key: str, window: float = 0.5) -> SampleRandomness:
    """Return the choices of an evaluation. They depend on the sample and the window, not on its place in a unit.

    So a sample is decoded to the same array for any micro-batch, number of lanes and order of shards.

    Args:
        key: The sample's key.
        window: Position of the window in time, from 0 (first) to 1 (last).
    """
    return SampleRandomness(window=window, seed=hash64(key), augment=False)
