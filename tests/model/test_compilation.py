"""Compiled layers compute what plain ones do, in few graphs. The graphs are run by AOTAutograd, without Inductor."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.compilation import compile_layers
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver

CONFIG = ModelConfig(
    latents=8,
    width=16,
    cross_attends=2,
    heads=2,
    latent_block_repeats=2,
    self_attends_per_block=2,
    share_latent_blocks=False,
    image=ImageInput(height=8, width=8, channels=1, bands=3),
)


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def results(config: ModelConfig, precision: str, compiled: bool, depth: Tensor | None = None) -> list[Tensor]:
    """The logits of a batch and the gradients of all parameters."""
    torch.manual_seed(0)
    model = Perceiver(config, {"source": 3})
    if compiled:
        compile_layers(model, backend="aot_eager")
    image = torch.randint(0, 256, (4, 8, 8, 1), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model({"image": image}, {}, "source", depth=depth).float()
    torch.autograd.backward(logits.logsumexp(1).sum())
    return [
        logits.detach(),
        *(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_have_the_results_of_plain_ones(precision: str, checkpointing: bool) -> None:
    config = replace(CONFIG, activation_checkpointing=checkpointing)
    # With stochastic depth in one case, since cases take time.
    plain = checkpointing or precision == "bf16"
    depth = None if plain else torch.arange(32).view(8, 4) % 3 / 2
    expected, found = results(config, precision, False, depth), results(config, precision, True, depth)
    assert counters["frames"]["total"] > 0
    tolerance = 1e-6 if precision == "fp32" else 0.03
    for one, other in zip(expected, found, strict=True):
        assert (one - other).norm() <= tolerance * one.norm() + 1e-7


def test_blocks_and_their_repetitions_share_graphs() -> None:
    results(CONFIG, "bf16", True)
    # The query of a cross-attend, its update, and a block. Without autocast the latents are expanded at first, which is
    # a layout of its own.
    assert counters["stats"]["unique_graphs"] == 3
    torch._dynamo.reset()
    counters.clear()
    results(CONFIG, "fp32", True)
    assert counters["stats"]["unique_graphs"] == 5
