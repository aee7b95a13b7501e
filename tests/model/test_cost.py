"""Costs computed from a configuration are those of the model it builds, and the paper's."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from reference import HEADS, SMALL, random_arrays, small_configs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver_dist.errors import InternalError
from perceiver_dist.modalities import ImageInput, PointCloudInput
from perceiver_dist.model.cost import (
    forward_flops,
    memory_per_rank,
    paper_flops,
    parameter_count,
    tokens_per_modality,
)
from perceiver_dist.model.model_config import ModelConfig
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
def test_the_paper_s_imagenet_models_have_the_published_parameters(config: ModelConfig, count: int):
    assert parameter_count(config, {"imagenet": 1000}) == count
    with torch.device("meta"):
        model = Perceiver(config, {"imagenet": 1000})
    assert sum(p.numel() for p in model.parameters()) == count


@settings(max_examples=30, deadline=None)
@given(config=small_configs())
def test_the_parameter_count_is_the_model_s(config: ModelConfig):
    model = Perceiver(config, HEADS)
    assert parameter_count(config, HEADS) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "published"), [(IMAGENET, 707.2e9), (ONE_CROSS_ATTEND, 404e9), (PERCEIVER_IO, 407e9)]
)
def test_the_papers_flops_are_the_published_ones(config: ModelConfig, published: float):
    assert paper_flops(config, ["image"]) == pytest.approx(published, rel=0.01)
    assert forward_flops(config, ["image"]) < paper_flops(config, ["image"])


def baddbmm_flops(_: torch.Size, left: torch.Size, right: torch.Size, **_options: object) -> int:
    """Of the in-place product, which torch's counter leaves out."""
    return 2 * left.numel() * right[-1]


@pytest.mark.parametrize("path", ["dense", "factored", "separable"])
@pytest.mark.parametrize(
    ("names", "readout"),
    [(("image",), "mean"), (("audio", "video"), "decoder"), (("audio", "points"), "mean")],
)
def test_forward_flops_are_the_matrix_products_that_run(path: str, names: tuple[str, ...], readout: str):
    specs = SMALL | {"audio": replace(SMALL["audio"], position="learned", position_channels=3)}
    options = {"latent_block_repeats": 2, "readout": readout, "cross_attention": path}
    config, sources = ModelConfig(latents=4, width=8, heads=2, **options, **specs), {"clips": 5}
    model = Perceiver(config, sources)
    arrays = {name: array for name, array in random_arrays(config, 1).items() if name in names}
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: baddbmm_flops})
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(arrays, {}, "clips")
    heads = 2 * config.width * sum(sources.values())
    assert counter.get_total_flops() == forward_flops(config, names) + heads


def test_tokens_are_counted_per_modality():
    assert tokens_per_modality(ModelConfig(**SMALL)) == {"image": 6, "audio": 5, "video": 8, "points": 7}


@pytest.mark.parametrize(
    ("stage", "divided"), [(0, ()), (1, ("optimizer",)), (2, ("optimizer", "gradients"))]
)
def test_each_zero_stage_divides_one_thing_more(stage: int, divided: tuple[str, ...]):
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
    path: str, names: tuple[str, ...], options: dict[str, object], position: str
):
    image = ImageInput(28, 28, 3, position=position, position_channels=34)
    large = {"image": image, "points": PointCloudInput()}
    specs = {name: large.get(name, SMALL[name]) for name in names}
    config = ModelConfig(latents=64, cross_attends=3, cross_attention=path, **options, **specs)
    model, saved = Perceiver(config, HEADS), {}
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


def test_checkpointing_keeps_one_latent_array_per_layer_and_one_layer():
    config = replace(IMAGENET, activation_checkpointing=True)
    options = {"zero_stage": 0, "world_size": 1, "micro_batch": 2, "precision": "fp32"}
    less, more = (memory_per_rank(c, {"a": 1}, **options)["activations"] for c in (config, IMAGENET))
    latents = 2 * 512 * 1024 * 4
    assert 56 * latents < less < (56 + 12) * latents < more


def test_wrong_questions_are_named():
    with pytest.raises(InternalError, match=r"\['audio'\] are not configured.*image"):
        paper_flops(IMAGENET, ["audio"])
    with pytest.raises(InternalError, match="world_size 0"):
        memory_per_rank(IMAGENET, {"a": 1}, zero_stage=1, world_size=0, micro_batch=1)
