"""Initial weights: the paper's, but for heads that begin small."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver

CONFIG = ModelConfig(
    latents=16,
    width=64,
    cross_attends=3,
    image=ImageInput(height=16, width=16, channels=1, bands=4),
    initial_logit_std=None,
)


def build(**options: Any) -> Perceiver:
    torch.manual_seed(0)
    return Perceiver(replace(CONFIG, **options), {"all": 10})


def test_only_the_heads_differ_from_the_paper_and_only_in_scale() -> None:
    paper = dict(build().named_parameters())
    scaled = dict(build(initial_logit_std=0.5).named_parameters())
    # Three repetitions of one block of two layers.
    factor = 0.5 / (3 * (2 * 1.425) ** 0.5)
    for name, weight in scaled.items():
        torch.testing.assert_close(weight, (factor if name == "heads.all.weight" else 1.0) * paper[name])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_latent_blocks": False},
        {"latent_block_repeats": 4, "cross_attends": 1},
        {"self_attends_per_block": 6, "cross_attends": 8},
        {"readout": "decoder"},
    ],
)
def test_logits_of_a_new_model_have_about_the_given_spread_at_any_depth(options: dict[str, Any]) -> None:
    model = build(initial_logit_std=0.25, **options)
    arrays = {"image": torch.randint(0, 256, (8, 16, 16, 1), dtype=torch.uint8)}
    with torch.no_grad():
        spread = model(arrays, {}, "all").std().item()
    assert 0.1 < spread < 0.4


def test_heads_can_begin_at_zero_as_in_the_authors_code() -> None:
    weights = dict(build(initial_logit_std=0.0).named_parameters())
    assert weights["heads.all.weight"].abs().max() == 0


def test_the_range_is_checked() -> None:
    with pytest.raises(UserError, match="initial_logit_std"):
        replace(CONFIG, initial_logit_std=-0.1)
