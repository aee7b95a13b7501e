"""Augmentation of clouds: mirrored and stretched by the seed, within the bounds, and not at all by default."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_files import npy

from perceiver_dist.modalities import PointCloudInput
from pipelines.augment.augment_config import NO_AUGMENT, AugmentConfig
from pipelines.augment.cloud_transform import transformed_cloud
from pipelines.augment.image_transform import NO_TRANSFORM, ImageTransform
from pipelines.augment.randomness import SampleRandomness, evaluation_randomness
from pipelines.decode import decode_points

CLOUD = np.random.default_rng(0).uniform(-1, 1, (50, 3))


@given(seed=st.integers(0, 2**64 - 1), stretch=st.floats(0, 0.9))
def test_each_axis_has_a_factor_within_the_bounds_and_half_of_the_clouds_are_mirrored(
    seed: int, stretch: float
) -> None:
    plain = transformed_cloud(CLOUD, AugmentConfig(stretch=stretch), seed)
    mirrored = transformed_cloud(CLOUD, AugmentConfig(stretch=stretch, flip=True), seed)
    factors = plain / CLOUD
    assert factors == pytest.approx(np.broadcast_to(factors[0], CLOUD.shape))
    assert (np.abs(factors - 1) <= stretch + 1e-9).all()
    assert (mirrored[:, 1:] == plain[:, 1:]).all()
    assert (mirrored[:, 0] == plain[:, 0]).all() or (mirrored[:, 0] == -plain[:, 0]).all()


def test_half_of_the_clouds_are_mirrored() -> None:
    flips = [
        transformed_cloud(CLOUD, AugmentConfig(flip=True), seed)[0, 0] != CLOUD[0, 0] for seed in range(400)
    ]
    assert 160 < sum(flips) < 240


def test_decoded_clouds_are_augmented_in_training_only() -> None:
    transform = ImageTransform(AugmentConfig(stretch=0.5), 7)
    spec, file = PointCloudInput(points=50, scale_jitter=0), npy(CLOUD)
    plain = decode_points(file, "npy", spec, SampleRandomness(0.5, 3, augment=True))
    training = decode_points(file, "npy", spec, SampleRandomness(0.5, 3, augment=True, transform=transform))
    assert training == pytest.approx(transformed_cloud(plain, transform.augment, transform.seed), abs=1e-6)
    assert evaluation_randomness("a").transform == NO_TRANSFORM
    assert (transformed_cloud(CLOUD, NO_AUGMENT, 0) == CLOUD).all()
