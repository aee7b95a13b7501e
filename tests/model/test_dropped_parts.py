"""Forward passes without some latents, and without the updates of some layers."""

from dataclasses import replace

import pytest
import torch
from reference import HEADS, SMALL, random_arrays, random_model
from torch import Tensor

from perceiver_dist.model.model_config import CrossAttentionPath, ModelConfig
from perceiver_dist.model.perceiver import Perceiver

CONFIG = ModelConfig(latents=6, width=8, heads=2, latent_block_repeats=2, self_attends_per_block=2, **SMALL)
SOURCE = next(iter(HEADS))
PATHS: tuple[CrossAttentionPath, ...] = ("dense", "factored", "separable")


def logits(model: Perceiver, kept: Tensor | None = None, depth: Tensor | None = None) -> Tensor:
    result: Tensor = model(random_arrays(model.config, 3), {}, SOURCE, kept=kept, depth=depth)
    return result


def layers_of(config: ModelConfig) -> int:
    return config.cross_attends * config.latent_block_repeats * config.self_attends_per_block


@pytest.mark.parametrize("path", PATHS)
def test_all_latents_and_whole_updates_change_nothing(path: CrossAttentionPath) -> None:
    model = random_model(replace(CONFIG, cross_attention=path)).double()
    assert model.config.self_attends == layers_of(CONFIG)
    depth = torch.ones(model.config.self_attends, 3)
    torch.testing.assert_close(logits(model, torch.arange(6), depth), logits(model))


@pytest.mark.parametrize("path", PATHS)
def test_the_kept_latents_are_a_model_of_their_own(path: CrossAttentionPath) -> None:
    config = replace(CONFIG, cross_attention=path)
    model, kept = random_model(config).double(), torch.tensor([0, 2, 5])
    smaller = Perceiver(replace(config, latents=3), HEADS).double()
    state = model.state_dict()
    smaller.load_state_dict(state | {"latents": state["latents"][kept]})
    torch.testing.assert_close(logits(model, kept), logits(smaller))
    [gradient] = torch.autograd.grad(logits(model, kept).sum(), [model.latents])
    assert [bool(row.any()) for row in gradient] == [True, False, True, False, False, True]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_layer_that_is_left_out_has_no_influence_on_its_sample(checkpointing: bool) -> None:
    model = random_model(replace(CONFIG, activation_checkpointing=checkpointing)).double()
    depth = torch.ones(layers_of(CONFIG), 3)
    depth[:, 1] = 0
    found, whole = logits(model, depth=depth), logits(model)
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]])
    bare = random_model(CONFIG).double()
    bare.load_state_dict(model.state_dict())
    with torch.no_grad():
        for block in bare.latent_blocks:
            for name, parameter in block.named_parameters():
                if ".output." in f".{name}" or ".project." in name:
                    parameter.zero_()
    torch.testing.assert_close(found[1], logits(bare)[1])


def test_layers_are_counted_in_the_order_in_which_they_run() -> None:
    model = random_model(CONFIG).double()
    seen: list[float] = []
    depth = torch.arange(1, layers_of(CONFIG) + 1.0)[:, None].expand(-1, 3)
    for block in model.latent_blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1][:, 0].tolist()))
    logits(model, depth=depth)
    assert seen == list(range(1, layers_of(CONFIG) + 1))
