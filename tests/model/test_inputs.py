"""Tokenizers: channel order, the paper's channel counts, positions, LayerNorm statistics and option checks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from reference import SMALL, content_of, position_of, random_arrays, small_configs

from perceiver_dist.errors import InternalError, UserError
from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput, VideoInput
from perceiver_dist.model.inputs import (
    Tokenizer,
    encoding_channels,
    learned_positions,
    patchify,
    token_channels,
)
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.positions import fourier_features, point_features, token_order


def test_imagenet_tokens_have_261_channels_and_no_encoding() -> None:
    config = ModelConfig(image=ImageInput(224, 224, 3, patch=1, bands=64))
    assert token_channels(config) == 261
    assert encoding_channels(config) == {"image": 0}


def test_audioset_video_and_audio_tokens_have_487_channels() -> None:
    video = VideoInput(32, 25.0, 224, 224, 3, patch=(2, 8, 8), bands=16)
    config = ModelConfig(audio=AudioInput(48000, 61440, 128, bands=64), video=video)
    assert token_channels(config) == 487
    assert encoding_channels(config) == {"audio": 487 - 128 - 129, "video": 4}


def test_modelnet_tokens_have_387_channels_all_of_them_content() -> None:
    points = PointCloudInput(points=2000, bands=64, max_frequency=2240)
    assert token_channels(ModelConfig(points=points)) == points.content_channels == 387
    mixed = ModelConfig(points=points, image=ImageInput(224, 224, 3, patch=1, bands=64))
    assert encoding_channels(mixed) == {"image": 387 + 4 - 261, "points": 4}


def test_a_model_without_modalities_is_rejected() -> None:
    with pytest.raises(UserError, match=r"model\.image, model\.audio, model\.video, model\.points"):
        token_channels(ModelConfig())


@pytest.mark.parametrize("name", SMALL)
def test_patches_and_positions_match_the_reference_loops(name: str) -> None:
    spec = SMALL[name]
    array = random_arrays(ModelConfig(**{name: spec}), 2)[name]
    tokens = Tokenizer(name, spec)(array)
    torch.testing.assert_close(tokens.content[1].double(), content_of(array[1], spec), atol=1e-6, rtol=0)
    torch.testing.assert_close(tokens.position.double(), position_of(spec), atol=1e-6, rtol=0)


def test_a_patch_is_flattened_row_major_with_colours_last() -> None:
    spec = ImageInput(height=2, width=4, channels=3, patch=2, bands=1)
    array = torch.arange(24, dtype=torch.uint8).view(1, 2, 4, 3)
    first = [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    assert patchify(array, spec).tolist() == [[first, [value + 6 for value in first]]]


def test_permutation_moves_fourier_positions_with_their_tokens() -> None:
    spec = replace(SMALL["image"], permutation_seed=3)
    array = random_arrays(ModelConfig(image=spec), 2)["image"]
    plain, permuted = Tokenizer("image", SMALL["image"])(array), Tokenizer("image", spec)(array)
    order = token_order(spec)
    assert sorted(order.tolist()) == [*range(6)] != order.tolist()
    for part in ("content", "mean", "rstd"):
        assert torch.equal(getattr(permuted, part), getattr(plain, part)[:, order])
    assert torch.equal(permuted.position, plain.position[order])


def test_learned_positions_are_not_permuted_and_replace_the_fourier_channels() -> None:
    spec = replace(SMALL["image"], position="learned", position_channels=5, permutation_seed=3)
    config, position = ModelConfig(image=spec), torch.randn(6, 5)
    assert learned_positions(config) == {"image": (6, 5)}
    assert token_channels(config) == 2 * 2 * 3 + 5
    array = random_arrays(config, 2)["image"]
    assert torch.equal(Tokenizer("image", spec)(array, None, position).position, position)
    with pytest.raises(InternalError, match="image: position is 'learned', but learned_position is missing"):
        Tokenizer("image", spec)(array)


def test_pixel_scale_imagenet_normalises_by_imagenet_mean_and_std() -> None:
    spec = ImageInput(height=2, width=2, patch=2, pixel_scale="imagenet")
    array = torch.tensor([0, 100, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    expected = torch.tensor([-0.485 / 0.229, (100 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(Tokenizer("image", spec)(array).content[0, 0], expected.repeat(4))
    with pytest.raises(UserError, match="pixel_scale is 'none', must be one of symmetric, imagenet"):
        ImageInput(pixel_scale="none")  # type: ignore[arg-type]  # the invalid value under test
    with pytest.raises(UserError, match="pixel_scale is imagenet, which needs 3 channels, but channels is 1"):
        ImageInput(channels=1, pixel_scale="imagenet")


@pytest.mark.parametrize("name", ["image", "audio", "video"])
def test_invalid_position_options_are_rejected(name: str) -> None:
    with pytest.raises(
        UserError, match=f"model.{name}.position is 'absolute', must be one of fourier, learned"
    ):
        replace(SMALL[name], position="absolute")
    with pytest.raises(UserError, match=f"model.{name}.position_channels is 0"):
        replace(SMALL[name], position_channels=0)


def test_the_highest_frequency_is_half_of_max_frequency() -> None:
    features = fourier_features(AudioInput(samples=40, segment=8, bands=2, max_frequency=7.0))
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(features[:, 2].double(), (torch.pi * 3.5 * x).sin(), atol=1e-6, rtol=0)


def test_point_features_are_accurate_at_the_papers_highest_frequency() -> None:
    spec = PointCloudInput(points=500, bands=64, max_frequency=2240)
    points = torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = point_features(points, spec)
    phases = torch.pi * 1120 * points.double()
    assert torch.equal(features[..., :3], points)
    for axis in range(3):
        highest = 3 + 64 * (axis + 1) - 1
        sine, cosine = features[..., highest].double(), features[..., highest + 192].double()
        torch.testing.assert_close(sine, phases[..., axis].sin(), atol=5e-7, rtol=0)
        torch.testing.assert_close(cosine, phases[..., axis].cos(), atol=5e-7, rtol=0)


@settings(max_examples=20, deadline=None)
@given(config=small_configs())
def test_statistics_are_those_of_the_concatenated_token(config: ModelConfig) -> None:
    arrays = random_arrays(config, 2)
    shapes = learned_positions(config)
    for name, length in encoding_channels(config).items():
        learned = torch.randn(shapes[name], dtype=torch.float64) if name in shapes else None
        tokenizer = Tokenizer(name, config.modalities[name]).double()
        tokens = tokenizer(arrays[name], torch.linspace(0, 1, length), learned)
        parts = [
            tokens.content,
            tokens.position.expand(2, -1, -1),
            tokens.encoding.expand(*tokens.mean.shape, -1),
        ]
        whole = torch.cat(parts, dim=-1)
        assert whole.shape[-1] == token_channels(config)
        torch.testing.assert_close(tokens.mean, whole.mean(-1))
        torch.testing.assert_close(tokens.rstd, (whole.var(-1, correction=0) + 1e-5).rsqrt())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"latents": 0}, r"model\.latents is 0"),
        ({"width": 10, "heads": 4}, r"model\.heads is 4.*width 10"),
        ({"cross_attention": "fast"}, "'fast'.*auto, dense, factored"),
        ({"latent_block_repeats": 0}, r"model\.latent_block_repeats is 0"),
        ({"readout": "max"}, "'max'.*mean, decoder"),
        ({"share_cross_attends": "some"}, "'some'.*all_but_first, all, none"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        ModelConfig(**options)
