"""Parameters and FLOPs computed from a configuration, against built models and published numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from reference import AUDIO, HEADS, SMALL, random_arrays, small_configs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_dist.errors import InternalError
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.cost import (
    forward_flops,
    paper_flops,
    parameter_count,
    tokens_per_modality,
)
from perceiver_dist.model.model_config import CrossAttentionPath, ModelConfig, Readout
from perceiver_dist.model.perceiver import Perceiver

IMAGENET = ModelConfig(
    latents=512,
    width=1024,
    cross_attends=8,
    self_attends_per_block=6,
    heads=8,
    image=ImageInput(224, 224, 3, patch=1, bands=64),
)
UNSHARED = replace(IMAGENET, share_cross_attends="none", share_latent_blocks=False)
ALL_SHARED = replace(IMAGENET, share_cross_attends="all")
ONE_CROSS_ATTEND = replace(IMAGENET, cross_attends=1, latent_block_repeats=8)
PERCEIVER_IO = replace(ONE_CROSS_ATTEND, readout="decoder")


# Published: 44.9M and, without sharing, 326.2M (Perceiver, 4.1 and appendix); 42.1M and 48.4M (Perceiver IO, ImageNet).
@pytest.mark.parametrize(
    ("config", "count"),
    [
        (IMAGENET, 44_912_254),
        (UNSHARED, 326_241_856),
        (ALL_SHARED, 42_135_859),
        (ONE_CROSS_ATTEND, 42_135_859),
        (PERCEIVER_IO, 48_440_627),
    ],
)
def test_imagenet_models_have_the_published_parameter_counts(config: ModelConfig, count: int) -> None:
    assert parameter_count(config, {"imagenet": 1000}) == count


@settings(max_examples=30, deadline=None)
@given(config=small_configs())
def test_parameter_count_is_that_of_a_built_model(config: ModelConfig) -> None:
    model = Perceiver(config, HEADS)
    assert parameter_count(config, HEADS) == sum(p.numel() for p in model.parameters())


def test_counting_parameters_allocates_nothing_and_draws_no_random_numbers() -> None:
    spectrogram = AudioInput(sample_rate=8000, samples=512, segment=64, mel_bands=10)
    huge = replace(IMAGENET, width=2**20, audio=spectrogram)
    before = torch.get_rng_state()
    assert parameter_count(huge, {"imagenet": 1000}) > 2**43
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("config", "published"), [(IMAGENET, 707.2e9), (ONE_CROSS_ATTEND, 404e9), (PERCEIVER_IO, 407e9)]
)
def test_flops_in_the_papers_formulation_are_the_published_ones(
    config: ModelConfig, published: float
) -> None:
    assert paper_flops(config, ["image"]) == pytest.approx(published, rel=0.01)
    assert forward_flops(config, ["image"]) < paper_flops(config, ["image"])


def baddbmm_flops(_: torch.Size, left: torch.Size, right: torch.Size, **_options: object) -> int:
    """Return the FLOPs of the in-place product, which torch's counter does not include."""
    return 2 * left.numel() * right[-1]


@pytest.mark.parametrize("path", ["dense", "factored", "separable"])
@pytest.mark.parametrize(
    ("names", "readout"),
    [(("image",), "mean"), (("audio", "video"), "decoder"), (("audio", "points"), "mean")],
)
def test_forward_flops_are_those_of_the_matrix_products_that_run(
    path: CrossAttentionPath, names: tuple[str, ...], readout: Readout
) -> None:
    specs: dict[str, Any] = {**SMALL, "audio": replace(AUDIO, position="learned", position_channels=3)}
    options: dict[str, Any] = {"latent_block_repeats": 2, "readout": readout, "cross_attention": path}
    config, sources = ModelConfig(latents=4, width=8, heads=2, **options, **specs), {"clips": 5}
    model = Perceiver(config, sources)
    arrays = {name: array for name, array in random_arrays(config, 1).items() if name in names}
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: baddbmm_flops})
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(arrays, {}, "clips")
    heads = 2 * config.width * sum(sources.values())
    assert counter.get_total_flops() == forward_flops(config, names) + heads


def test_tokens_are_counted_per_modality() -> None:
    assert tokens_per_modality(ModelConfig(**SMALL)) == {"image": 6, "audio": 5, "video": 8, "points": 7}


def test_an_unknown_modality_is_named() -> None:
    with pytest.raises(InternalError, match=r"\['audio'\] are not configured.*image"):
        paper_flops(IMAGENET, ["audio"])
