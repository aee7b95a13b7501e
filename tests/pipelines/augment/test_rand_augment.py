"""RandAugment keeps size and mode, does nothing at magnitude 0 where there is one, and is a function of the seed."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from perceiver_dist.errors import UserError
from pipelines.augment.image_transform import AugmentConfig, ImageTransform
from pipelines.augment.rand_augment import CHANGES, rand_augment

RANDOM = np.random.default_rng(0)
PICTURES = {
    "L": Image.fromarray(RANDOM.integers(0, 200, (20, 30), np.uint8)),
    "RGB": Image.fromarray(RANDOM.integers(0, 200, (20, 30, 3), np.uint8)),
}


@pytest.mark.parametrize("mode", PICTURES)
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("strength", [-1.0, -0.5, 0.0, 0.3, 1.0])
def test_every_change_keeps_size_and_mode(name: str, mode: str, strength: float) -> None:
    picture = PICTURES[mode]
    changed = CHANGES[name](picture, strength)
    assert (changed.size, changed.mode) == (picture.size, mode)
    if strength == 0 and name not in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(np.asarray(changed), np.asarray(picture))
    # Saturation is nothing to a grey picture.
    if abs(strength) == 1 and name != "identity" and (mode, name) != ("L", "color"):
        assert not np.array_equal(np.asarray(changed), np.asarray(picture))


def test_the_strongest_changes_are_those_of_the_table() -> None:
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (100, 1)))
    assert np.unique(np.asarray(CHANGES["posterize"](ramp, -1))).size == 16
    np.testing.assert_array_equal(np.asarray(CHANGES["solarize"](ramp, 1)), 255 - np.asarray(ramp))
    np.testing.assert_array_equal(np.asarray(CHANGES["solarize"](ramp, 0.5))[0, [127, 128]], [127, 127])
    moved = np.asarray(CHANGES["translate_x"](ramp, 1))[50]
    assert moved[0] == 256 * 0.45 // 1
    assert moved[-1] == 128
    bright = np.asarray(CHANGES["brightness"](ramp, 1))[0]
    assert bright[100] == 190
    np.testing.assert_array_equal(
        np.asarray(CHANGES["rotate"](ramp, 0.5)),
        np.asarray(ramp.rotate(15, Image.Resampling.BILINEAR, fillcolor=128)),
    )


def test_changes_follow_one_another_as_the_seed_says() -> None:
    picture = PICTURES["RGB"]
    pictures = [rand_augment(picture, 3, 7, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    first, again, other = (np.asarray(each) for each in pictures)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert rand_augment(picture, 0, 7, np.random.default_rng(0)) is picture


def test_a_view_applies_as_many_as_are_asked_for() -> None:
    picture = PICTURES["RGB"]
    seen = {
        ImageTransform(AugmentConfig(operations=1, magnitude=10), seed).changed(picture).tobytes()
        for seed in range(200)
    }
    singles = {change(picture, strength).tobytes() for change in CHANGES.values() for strength in (-1, 1)}
    assert seen == singles
    assert ImageOps.mirror(picture).tobytes() not in seen


@pytest.mark.parametrize(
    "options", [{"operations": -1}, {"magnitude": 10.5}, {"masks": -1}, {"masked_time": 0}]
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(UserError, match=r"augment\."):
        AugmentConfig(**options)
