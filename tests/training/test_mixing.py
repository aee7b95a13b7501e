"""MixUp and CutMix: images and losses are mixed in the same proportion, deterministically by unit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from perceiver_dist.data.batches import Batch
from perceiver_dist.errors import UserError
from perceiver_dist.metrics.losses import loss_per_sample
from perceiver_dist.training.augment.mixing import mix
from pipelines.augment.augment_config import AugmentConfig
from pipelines.shards.source import SourceConfig

PICTURES = SourceConfig("pictures", "x.tar", ["image"], 8)


def source_of(**options: Any) -> SourceConfig:
    return replace(PICTURES, augment=AugmentConfig(**options))


def batch_of(unit: int, present: list[bool] | None = None) -> Batch:
    """Eight images of one shade each: 0, 30, 60, ..."""
    shades = torch.arange(0, 240, 30, dtype=torch.uint8)
    return Batch(
        unit=unit,
        keys=[""] * 8,
        valid=torch.ones(8, dtype=torch.bool),
        labels=torch.arange(8),
        arrays={"image": shades[:, None, None, None].expand(-1, 12, 16, 3).clone()},
        present={"image": torch.tensor(present or [True] * 8)},
        quarantined=[],
    )


def test_nothing_is_mixed_by_default() -> None:
    batch = batch_of(0)
    mixed = mix(batch, PICTURES, 0)
    logits = torch.randn(8, 8)
    assert mixed.arrays is batch.arrays
    plain = loss_per_sample(logits, batch.labels, "softmax").mean()
    assert torch.equal(mixed.loss(logits, batch.labels, "softmax", 0.0), plain)


@settings(max_examples=60, deadline=None)
@given(
    unit=st.integers(0, 2**40),
    strength=st.floats(0.1, 4),
    kind=st.sampled_from(["mixup", "cutmix"]),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_pixels_and_loss_are_mixed_in_the_same_proportion(
    unit: int, strength: float, kind: str, smoothing: float
) -> None:
    batch = batch_of(unit)
    mixed = mix(batch, source_of(**{kind: strength}), 3)
    image, share = batch.arrays["image"].float(), mixed.share
    assert share is not None
    expected = share[:, None] * image.mean((1, 2)) + (1 - share)[:, None] * image[mixed.other].mean((1, 2))
    torch.testing.assert_close(mixed.arrays["image"].float().mean((1, 2)), expected, atol=0.6, rtol=0)
    logits = torch.randn(8, 8)
    soft = share[:, None] * functional.one_hot(batch.labels, 8)
    soft = soft + (1 - share)[:, None] * functional.one_hot(batch.labels[mixed.other], 8)
    # The authors smooth the labels after they are mixed.
    soft = (1 - smoothing) * soft + smoothing / 8
    torch.testing.assert_close(
        mixed.loss(logits, batch.labels, "softmax", smoothing), functional.cross_entropy(logits, soft)
    )
    again = mix(batch_of(unit), source_of(**{kind: strength}), 3)
    assert torch.equal(again.arrays["image"], mixed.arrays["image"])


def test_the_mix_depends_on_unit_and_seed_and_uses_both_kinds() -> None:
    source = source_of(mixup=1.0, cutmix=1.0)
    found = [mix(batch_of(unit), source, seed).arrays["image"] for unit in range(20) for seed in (0, 1)]
    assert len({tuple(images.flatten().tolist()) for images in found}) == 40
    # Cut, every pixel is one of the shades; blended, most are not.
    cut = [bool((images % 30 == 0).all()) for images in found]
    assert 8 < sum(cut) < 32


def test_missing_images_are_not_mixed() -> None:
    present = [True, False] * 4
    for unit in range(10):
        batch = batch_of(unit, present)
        mixed = mix(batch, source_of(mixup=1.0), 0)
        assert mixed.share is not None
        alone = ~(batch.present["image"] & batch.present["image"][mixed.other])
        assert torch.equal(mixed.arrays["image"][alone], batch.arrays["image"][alone])
        assert (mixed.share[alone] == 1).all()


def test_mixing_needs_a_source_of_images_only() -> None:
    with pytest.raises(UserError, match=r"augment\.mixup and augment\.cutmix mix images alone"):
        SourceConfig("clips", "x.tar", ["image", "audio"], 3, augment=AugmentConfig(mixup=0.2))
    with pytest.raises(UserError, match=r"augment\.cutmix is -1\.0, must be at least 0"):
        AugmentConfig(cutmix=-1.0)
