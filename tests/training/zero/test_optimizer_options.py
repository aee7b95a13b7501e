"""Options of the optimizer reach torch's: eps, betas, and which parameters have weight decay."""

from typing import Any

import pytest
import torch

from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.training.zero.optimizer import build_optimizer, parameter_groups

MODEL = ModelConfig(
    latents=4,
    width=16,
    heads=2,
    readout="decoder",
    image=ImageInput(height=4, width=4, channels=1, bands=2),
    audio=AudioInput(samples=64, segment=16, position="learned", position_channels=5),
)


@pytest.fixture(scope="module")
def model() -> Perceiver:
    torch.manual_seed(0)
    return Perceiver(MODEL, {"sounds": 3})


def decayed(model: Perceiver, optim: OptimConfig) -> set[str]:
    groups = parameter_groups(model, optim)
    found = {id(each) for group in groups if group["weight_decay"] for each in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in found}


def test_the_authors_decay_everything_but_biases_and_norms(model: Perceiver) -> None:
    """Their code leaves out what is called "b" and the parameters of layer_norm."""
    every = set(dict(model.named_parameters()))
    left_out = every - decayed(model, OptimConfig(decay_latents=True))
    assert left_out == {name for name in every if name.endswith(("bias", "token_gain", "norm.weight"))}
    without = decayed(model, OptimConfig())
    inputs = {"latents", "encodings.audio", "encodings.image", "decoder.queries.sounds"}
    assert every - left_out - without == inputs
    assert "positions.audio" in without


@pytest.mark.parametrize("partitioned", [True, False])
@pytest.mark.parametrize(
    ("options", "eps"),
    [
        ({"optimizer": "adamw"}, 1e-8),
        ({"optimizer": "lamb"}, 1e-6),
        ({"optimizer": "lamb", "eps": 1e-4}, 1e-4),
        ({"optimizer": "adamw", "eps": 1e-5}, 1e-5),
    ],
)
def test_eps_and_betas_reach_the_optimizer(
    model: Perceiver, partitioned: bool, options: dict[str, Any], eps: float
) -> None:
    optimizer = build_optimizer(model, OptimConfig(beta2=0.999, **options), partitioned)
    for group in optimizer.param_groups:
        assert (group["eps"], group["betas"]) == (eps, (0.9, 0.999))
