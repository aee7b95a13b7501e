"""RandAugment: keeps size and mode, is the identity at magnitude 0, and depends on the seed alone."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from perceiver_dist.errors import UserError
from pipelines.augment.augment_config import AugmentConfig
from pipelines.augment.image_transform import ImageTransform
from pipelines.augment.rand_augment import OPERATIONS, rand_augment

RANDOM = np.random.default_rng(0)
PICTURES = {
    "L": Image.fromarray(RANDOM.integers(0, 200, (20, 30), np.uint8)),
    "RGB": Image.fromarray(RANDOM.integers(0, 200, (20, 30, 3), np.uint8)),
}


@pytest.mark.parametrize("mode", PICTURES)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, -0.5, 0.0, 0.3, 1.0])
def test_every_operation_keeps_size_and_mode(name: str, mode: str, strength: float) -> None:
    picture = PICTURES[mode]
    changed = OPERATIONS[name](picture, strength)
    assert (changed.size, changed.mode) == (picture.size, mode)
    if strength == 0 and name not in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(np.asarray(changed), np.asarray(picture))
    # A grey picture has no saturation to change.
    if abs(strength) == 1 and name != "identity" and (mode, name) != ("L", "color"):
        assert not np.array_equal(np.asarray(changed), np.asarray(picture))


def test_operations_have_the_ranges_of_the_paper() -> None:
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (100, 1)))
    assert np.unique(np.asarray(OPERATIONS["posterize"](ramp, -1))).size == 16
    np.testing.assert_array_equal(np.asarray(OPERATIONS["solarize"](ramp, 1)), 255 - np.asarray(ramp))
    np.testing.assert_array_equal(np.asarray(OPERATIONS["solarize"](ramp, 0.5))[0, [127, 128]], [127, 127])
    moved = np.asarray(OPERATIONS["translate_x"](ramp, 1))[50]
    assert moved[0] == 256 * 0.45 // 1
    assert moved[-1] == 128
    bright = np.asarray(OPERATIONS["brightness"](ramp, 1))[0]
    assert bright[100] == 190
    np.testing.assert_array_equal(
        np.asarray(OPERATIONS["rotate"](ramp, 0.5)),
        np.asarray(ramp.rotate(15, Image.Resampling.BILINEAR, fillcolor=128)),
    )


def test_operations_depend_on_the_seed() -> None:
    picture = PICTURES["RGB"]
    pictures = [rand_augment(picture, 3, 7, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    first, again, other = (np.asarray(each) for each in pictures)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert rand_augment(picture, 0, 7, np.random.default_rng(0)) is picture


def test_transform_applies_the_configured_number_of_operations() -> None:
    picture = PICTURES["RGB"]
    seen = {
        ImageTransform(AugmentConfig(operations=1, magnitude=10), seed).apply(picture).tobytes()
        for seed in range(200)
    }
    singles = {
        operation(picture, strength).tobytes() for operation in OPERATIONS.values() for strength in (-1, 1)
    }
    assert seen == singles
    assert ImageOps.mirror(picture).tobytes() not in seen


@pytest.mark.parametrize(
    "options", [{"operations": -1}, {"magnitude": 10.5}, {"masks": -1}, {"masked_time": 0}]
)
def test_option_out_of_range_is_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"augment\."):
        AugmentConfig(**options)
