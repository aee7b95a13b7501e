"""Parameters, FLOPs and memory computed from a configuration, against built models and published numbers."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from reference import AUDIO, HEADS, SMALL, random_arrays, small_configs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput, PositionKind
from perceiver_dist.model.cost import (
    forward_flops,
    memory_per_rank,
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


@pytest.mark.parametrize(
    ("stage", "divided"), [(0, ()), (1, ("optimizer",)), (2, ("optimizer", "gradients"))]
)
def test_each_zero_stage_partitions_one_more_state(stage: Literal[0, 1, 2], divided: tuple[str, ...]) -> None:
    whole = memory_per_rank(IMAGENET, {"a": 1000}, zero_stage=0, world_size=4, micro_batch=1)
    split = memory_per_rank(IMAGENET, {"a": 1000}, zero_stage=stage, world_size=4, micro_batch=1)
    assert whole["parameters"] == 2 * 44_912_254
    assert whole["optimizer"] == 12 * 44_912_254
    for name in ("parameters", "gradients", "optimizer"):
        assert split[name] == (whole[name] // 4 if name in divided else whole[name])


@pytest.mark.parametrize("path", ["dense", "factored", "separable"])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("image",), {}),
        (("image", "audio"), {}),
        (("points",), {}),
        (("image", "points"), {}),
        (("image",), {"latent_block_repeats": 2, "readout": "decoder"}),
    ],
)
@pytest.mark.parametrize("position", ["fourier", "learned"])
def test_estimated_activations_are_near_what_autograd_saves(
    path: CrossAttentionPath, names: tuple[str, ...], options: dict[str, Any], position: PositionKind
) -> None:
    image = ImageInput(28, 28, 3, position=position, position_channels=34)
    large: dict[str, Any] = {"image": image, "points": PointCloudInput()}
    specs = {name: large.get(name, SMALL[name]) for name in names}
    config = ModelConfig(latents=64, cross_attends=3, cross_attention=path, **options, **specs)
    model = Perceiver(config, HEADS)
    saved: dict[int, tuple[int, torch.Tensor]] = {}
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        output = model(random_arrays(config, 8), {}, "clips")
    measured = sum(size for size, _ in saved.values())
    estimate = memory_per_rank(config, HEADS, zero_stage=0, world_size=1, micro_batch=8, precision="fp32")
    assert output.requires_grad
    assert estimate["activations"] == pytest.approx(measured, rel=0.15)


def test_activation_checkpointing_keeps_one_latent_array_per_layer_and_one_layer() -> None:
    config = replace(IMAGENET, activation_checkpointing=True)
    options: dict[str, Any] = {"zero_stage": 0, "world_size": 1, "micro_batch": 2, "precision": "fp32"}
    less, more = (memory_per_rank(c, {"a": 1}, **options)["activations"] for c in (config, IMAGENET))
    latents = 2 * 512 * 1024 * 4
    assert 56 * latents < less < (56 + 12) * latents < more


def test_errors_name_the_unknown_modality_and_the_world_size() -> None:
    with pytest.raises(UserError, match=r"\['audio'\] are not configured.*image"):
        paper_flops(IMAGENET, ["audio"])
    with pytest.raises(UserError, match="world_size 0"):
        memory_per_rank(IMAGENET, {"a": 1}, zero_stage=1, world_size=0, micro_batch=1)
