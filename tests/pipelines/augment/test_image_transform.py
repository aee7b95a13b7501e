"""Image augmentation: a function of seed and size that stays inside the picture and is off by default."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput, VideoInput
from pipelines.augment.augment_config import AugmentConfig
from pipelines.augment.image_transform import ImageTransform
from pipelines.decode import decode_image, decode_video
from pipelines.demo.synthetic_clips import render_clip

SPEC = ImageInput(height=16, width=16, channels=3, patch=4)
INCEPTION = AugmentConfig(crop="inception")


def photo(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    """Return a picture in which red increases to the right and green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    target = BytesIO()
    pixels = np.stack([across, down, np.full_like(across, 128)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


def seen(augment: AugmentConfig, seed: int, data: bytes | None = None) -> np.ndarray:
    """Return a picture as the model sees it."""
    return decode_image(data or photo(), SPEC, transform=ImageTransform(augment, seed))


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    seed=st.integers(0, 2**64 - 1),
    smallest=st.floats(0.01, 1),
)
def test_inception_crop_lies_in_the_picture_with_the_configured_area_and_aspect_ratio(
    width: int, height: int, seed: int, smallest: float
) -> None:
    transform = ImageTransform(AugmentConfig("inception", smallest), seed)
    left, top, right, bottom = transform.crop_box(width, height, 1.0)
    assert -1e-6 <= left < right <= width + 1e-6
    assert -1e-6 <= top < bottom <= height + 1e-6
    wide, high = right - left, bottom - top
    if 0.8 < width / height < 1.25:
        assert wide * high >= smallest * width * height * (1 - 1e-6) or wide == pytest.approx(high)
        assert 3 / 4 - 1e-6 <= wide / high <= 4 / 3 + 1e-6
    assert transform.crop_box(width, height, 1.0) == (left, top, right, bottom)


@given(width=st.integers(1, 500), height=st.integers(1, 500))
def test_central_crop_is_the_largest_of_its_aspect_ratio(width: int, height: int) -> None:
    left, top, right, bottom = ImageTransform().crop_box(width, height, 2.0)
    assert (right - left) / (bottom - top) == pytest.approx(2.0)
    assert (left + right, top + bottom) == pytest.approx((width, height))
    assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


def test_without_augmentation_the_picture_equals_pillows_fit() -> None:
    expected = ImageOps.fit(Image.open(BytesIO(photo())), (16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(seen(AugmentConfig(), 5), np.asarray(expected))


def test_crops_depend_on_the_seed_alone() -> None:
    crops = [seen(INCEPTION, seed) for seed in range(20)]
    assert len({crop.tobytes() for crop in crops}) == 20
    assert all(np.array_equal(seen(INCEPTION, seed), crop) for seed, crop in enumerate(crops))
    # No crop is mirrored: red still increases to the right.
    assert all((np.diff(crop[8, :, 0].astype(int)) >= -1).all() for crop in crops)


def test_half_of_the_samples_are_mirrored() -> None:
    plain = seen(AugmentConfig(), 0)
    found = [seen(AugmentConfig(flip=True), seed) for seed in range(200)]
    mirrored = [np.array_equal(picture, plain[:, ::-1]) for picture in found]
    assert all(
        np.array_equal(picture, plain) or turned for picture, turned in zip(found, mirrored, strict=True)
    )
    assert 70 < sum(mirrored) < 130


def test_colour_jitter_uses_its_range_and_stays_within_it() -> None:
    plain = seen(AugmentConfig(), 0).astype(float)
    means = [seen(AugmentConfig(colour=0.4), seed).mean() / plain.mean() for seed in range(100)]
    assert min(means) < 0.8
    assert max(means) > 1.15
    assert 0.59 < min(means) < max(means) < 1.41


@given(seed=st.integers(0, 2**32), smallest=st.floats(0.01, 1))
def test_no_crop_is_smaller_than_min_crop_side(seed: int, smallest: float) -> None:
    transform = ImageTransform(AugmentConfig("inception", smallest), seed)
    left, top, right, bottom = transform.crop_box(1000, 1000, 1.0)
    assert min(right - left, bottom - top) >= 1000 * transform.min_crop_side * (1 - 1e-9)


def test_jpeg_decoded_at_reduced_size_looks_the_same() -> None:
    for seed in range(10):
        large = seen(INCEPTION, seed, photo(1600, 1600)).astype(int)
        assert np.abs(seen(INCEPTION, seed, photo(1600, 1600, "JPEG")) - large).mean() < 3


def test_all_frames_of_a_video_are_augmented_alike() -> None:
    spec = VideoInput(frames=4, height=16, width=16)
    still = AugmentConfig("inception", 0.3, flip=True, colour=0.5)
    clip = render_clip(0, np.random.default_rng(0))
    first, _ = decode_video(clip, spec, None, 0.5, transform=ImageTransform(still, 3))
    again, _ = decode_video(clip, spec, None, 0.5, transform=ImageTransform(still, 3))
    other, _ = decode_video(clip, spec, None, 0.5, transform=ImageTransform(still, 4))
    assert first is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # The corner is background in every frame, so with one crop and one colour jitter for all it hardly changes.
    assert np.ptp(first[:, 0, 0].astype(int), axis=0).max() <= 12


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"smallest_area": 0.0}, "augment.smallest_area is 0.0, must be above 0 and at most 1"),
        ({"colour": 1.0}, "augment.colour is 1.0, must be at least 0 and below 1"),
    ],
)
def test_number_out_of_range_is_rejected(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        AugmentConfig(**options)
