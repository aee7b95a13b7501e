"""Statistics of a forward pass: those of the attention maps, without a change of any bit of the result."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perceiver_dist.errors import InternalError
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.observation import forward_watch
from perceiver_dist.model.observation.attention_maps import attention_maps
from perceiver_dist.model.observation.forward_watch import (
    SATURATED,
    ForwardWatch,
    attention_statistics,
    mean_cosine,
)
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.precision import autocast

CONFIG = ModelConfig(
    latents=6,
    width=16,
    heads=2,
    cross_attends=3,
    self_attends_per_block=1,
    image=ImageInput(height=8, width=6, channels=1, patch=2, bands=2),
    audio=AudioInput(samples=64, segment=16, bands=2),
)
PRESENT = {"audio": torch.tensor([True, False, True])}


def build(**options: Any) -> tuple[Perceiver, dict[str, Tensor]]:
    """Return a model whose latents differ and look at few tokens, and a batch of three samples."""
    torch.manual_seed(0)
    model = Perceiver(replace(CONFIG, **options), {"all": 3})
    with torch.no_grad():
        for cross_attend in model.cross_attends:
            cross_attend.query.weight.mul_(12)  # type: ignore[union-attr, operator]  # modules of a ModuleList
    arrays = {
        "image": torch.randint(0, 256, (3, 8, 6, 1), dtype=torch.uint8),
        "audio": torch.randint(-9999, 9999, (3, 64), dtype=torch.int16),
    }
    return model, arrays


def watch(
    model: Perceiver, arrays: dict[str, Tensor], precision: str = "fp32"
) -> tuple[ForwardWatch, Tensor]:
    """Return a watch that has seen a training step of the model, and the step's logits and gradients in one vector."""
    observer = ForwardWatch(CONFIG.cross_attends)
    model.observer = observer
    return observer, step(model, arrays, precision)


def step(model: Perceiver, arrays: dict[str, Tensor], precision: str = "fp32") -> Tensor:
    model.zero_grad()
    with autocast(torch.device("cpu"), precision):
        logits = model(arrays, PRESENT, "all")
    logits.float().logsumexp(1).sum().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([logits.detach().float().flatten(), *gradients])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("path", ["dense", "factored", "separable"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_watched_step_has_the_same_bits(path: str, precision: str, checkpointing: bool) -> None:
    model, arrays = build(cross_attention=path, activation_checkpointing=checkpointing)
    alone = step(model, arrays, precision)
    observer, watched = watch(model, arrays, precision)
    assert torch.equal(alone, watched)
    assert observer.statistics()[0].shape == (CONFIG.cross_attends, 2)


def test_the_statistics_are_those_of_the_attention_maps() -> None:
    model, arrays = build()
    observer, _ = watch(model, arrays)
    found, cosine = observer.statistics()
    for row, maps in zip(found, attention_maps(model, arrays, PRESENT), strict=True):
        weights = torch.cat([of_modality.flatten(2) for of_modality in maps.values()], dim=2)
        # 12 patches and 4 segments, which the second sample lacks.
        most = torch.tensor([16.0, 12.0, 16.0]).log()[:, None]
        assert row[0].item() == pytest.approx(
            (torch.special.entr(weights).sum(-1) / most).mean().item(), rel=1e-4
        )
        assert row[1].item() == pytest.approx((weights.amax(-1) > SATURATED).float().mean().item())
    _, latents = model.logits_and_latents(arrays, PRESENT, "all")
    pairs = torch.cosine_similarity(latents[:, :, None], latents[:, None], dim=-1)
    others = ~torch.eye(CONFIG.latents, dtype=torch.bool)
    assert cosine.item() == pytest.approx(pairs[:, others].mean().item(), abs=1e-5)


def test_the_first_forward_pass_counts() -> None:
    model, arrays = build()
    observer, _ = watch(model, arrays)
    first = observer.statistics()[0].clone()
    step(model, {name: array // 2 for name, array in arrays.items()})
    assert torch.equal(observer.statistics()[0], first)


def test_few_rows_of_many_tokens_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_watch, "_SCORES", 50)
    model, arrays = build()
    observer, _ = watch(model, arrays)
    assert observer.statistics()[0].isfinite().all()


def test_a_watch_without_a_forward_pass_is_an_error() -> None:
    with pytest.raises(InternalError, match="the watch has seen no forward pass"):
        ForwardWatch(2).statistics()


def test_even_and_single_attention_are_the_ends_of_the_scale() -> None:
    even, single = torch.zeros(1, 2, 7), torch.zeros(1, 2, 7)
    single[..., 3] = 100.0
    one_token = torch.full((1, 2, 7), -torch.inf)
    one_token[..., 0] = 3.0
    assert attention_statistics(even).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert attention_statistics(single).tolist() == pytest.approx([0, 1], abs=1e-6)
    assert attention_statistics(one_token).tolist() == [1, 0]


@given(seed=st.integers(0, 2**31), scale=st.floats(0, 50), tokens=st.integers(1, 9))
def test_statistics_are_fractions(seed: int, scale: float, tokens: int) -> None:
    scores = scale * torch.randn(2, 3, tokens, generator=torch.Generator().manual_seed(seed))
    entropy, saturated = attention_statistics(scores).tolist()
    assert 0 <= entropy <= 1 + 1e-6
    assert 0 <= saturated <= 1


def test_the_cosine_of_one_latent_is_one() -> None:
    assert mean_cosine(torch.randn(2, 1, 4)).item() == 1
