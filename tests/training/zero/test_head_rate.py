"""Learning rate of the heads' weights: a group of their own with AdamW, whose rate is a multiple of the others'."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.training.zero.engine import set_learning_rate
from perceiver_dist.training.zero.optimizer import build_optimizer

MODEL = ModelConfig(latents=2, width=8, heads=2, image=ImageInput(height=4, width=4, bands=1))


def rates(**options: Any) -> dict[str, float]:
    """Return the learning rate of every parameter by name, at a rate of 1 for the model."""
    torch.manual_seed(0)
    model = Perceiver(MODEL, {"one": 3, "two": 5})
    optimizer = build_optimizer(model, replace(OptimConfig(), **options), partitioned=True)
    set_learning_rate(SimpleNamespace(optimizer=optimizer), 1.0)
    by_parameter = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(by_parameter) == sum(len(group["params"]) for group in optimizer.param_groups)
    return {name: by_parameter[parameter] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 10.0),
        ({"optimizer": "lamb"}, 1.0),
        ({"head_rate": 1.0}, 1.0),
        ({"optimizer": "lamb", "head_rate": 3.0}, 3.0),
    ],
)
def test_only_the_weights_of_heads_have_another_rate(options: dict[str, Any], expected: float) -> None:
    found = rates(**options)
    assert {name: rate for name, rate in found.items() if rate != 1} == (
        {} if expected == 1 else {"heads.one.weight": expected, "heads.two.weight": expected}
    )


def test_frozen_parts_keep_a_rate_of_zero() -> None:
    found = rates(frozen=["latent_blocks"])
    assert {rate for name, rate in found.items() if name.startswith("latent_blocks")} == {0.0}
    assert found["heads.one.weight"] == 10


def test_a_rate_has_to_be_above_zero() -> None:
    with pytest.raises(UserError, match=r"optim\.head_rate"):
        OptimConfig(head_rate=0.0)
