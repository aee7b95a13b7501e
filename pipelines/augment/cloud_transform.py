"""Augmentation of point clouds: a function of the options of a source and of the seed of a sample."""

import numpy as np

from pipelines.augment.augment_config import AugmentConfig


def transformed_cloud(cloud: np.ndarray, augment: AugmentConfig, seed: int) -> np.ndarray:
    """Return a cloud stretched along its axes and mirrored along the first one, as the options and the seed decide.

    Args:
        cloud: float64 (points, 3).
        augment: Options of the source.
        seed: Seed of the sample.
    """
    if not (augment.stretch or augment.flip):
        return cloud
    # All are drawn whatever is switched on, so that one option does not change the choices of the other.
    mirrored, *factors = np.random.default_rng([seed, 3]).random(4)
    scales = 1 + augment.stretch * (2 * np.array(factors) - 1)
    if augment.flip and mirrored < 0.5:
        scales[0] = -scales[0]
    return cloud * scales
