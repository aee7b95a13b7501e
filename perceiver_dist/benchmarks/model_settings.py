"""Models under measurement: those of the papers, and the ImageNet model with one size changed at a time."""

from dataclasses import replace

from perceiver_dist.modalities import ImageInput, PointCloudInput, VideoInput
from perceiver_dist.model.model_config import ModelConfig


def _square(side: int) -> ImageInput:
    return ImageInput(height=side, width=side, channels=3, patch=1, bands=64, max_frequency=224.0)


_IMAGENET = ModelConfig(
    latents=512, width=1024, cross_attends=8, self_attends_per_block=6, heads=8, image=_square(224)
)

SETTINGS: dict[str, ModelConfig] = {
    "imagenet": _IMAGENET,
    "imagenet_1cross": replace(_IMAGENET, cross_attends=1, latent_block_repeats=8, readout="decoder"),
    "audioset_video": ModelConfig(
        latents=512, width=512, cross_attends=2, self_attends_per_block=8, heads=8,
        video=VideoInput(frames=32, height=224, width=224, patch=(2, 8, 8), bands=16),
    ),
    "modelnet40": ModelConfig(
        latents=512, width=1024, cross_attends=2, self_attends_per_block=6, heads=8,
        points=PointCloudInput(points=2048, bands=64, max_frequency=2240.0),
    ),
    "small": ModelConfig(image=ImageInput(height=48, width=48, channels=3, patch=1, bands=16)),
}  # fmt: skip
"""The papers' models, and a small one for tests. AudioSet has the weight sharing of ImageNet, which all libraries
support."""

SWEEP: dict[str, ModelConfig] = {
    **{f"{side * side:,} tokens": replace(_IMAGENET, image=_square(side)) for side in (32, 64, 128)},
    **{f"{latents} latents": replace(_IMAGENET, latents=latents) for latents in (128, 256)},
    "1 cross-attend": replace(_IMAGENET, cross_attends=1),
    **{f"{count} cross-attends": replace(_IMAGENET, cross_attends=count) for count in (2, 4)},
    "the ImageNet model": _IMAGENET,
}
"""The ImageNet model with one size changed in each entry."""


def find_setting(name: str) -> ModelConfig:
    """Return a setting by name.

    Args:
        name: One of `SETTINGS` or of `SWEEP`.
    """
    return (SETTINGS | SWEEP)[name]
