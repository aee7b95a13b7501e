"""Tests of the Triton kernels against plain torch, run by test_grid_kernels.py in Triton's interpreter."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import HEADS, random_model
from torch import Tensor

from perceiver_dist.modalities import ImageInput, VideoInput
from perceiver_dist.model import grid_kernels, separable
from perceiver_dist.model.grid_attention import attend_by_kernels
from perceiver_dist.model.model_config import ModelConfig

Attend = Callable[..., tuple[Tensor, ...]]


def arguments(batch: int, latents: int, channels: int, grid: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch + 7 * latents)
    tokens = torch.Size(grid).numel()

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    mean = random(batch, tokens)
    own = torch.cat([random(batch, tokens, channels - 1), mean[..., None]], dim=-1)
    rstd = random(batch, tokens).exp()
    return [
        random(batch, latents, channels),
        own,
        mean,
        rstd,
        *(random(batch, latents, size) for size in grid),
    ]


def results_and_gradients(attend: Attend, given: list[Tensor], statistics: bool) -> list[Tensor]:
    # Index 1 are the features, which get no gradient; 2 and 3 are mean and rstd.
    needed = [index != 1 and (statistics or index not in (2, 3)) for index in range(len(given))]
    copies = [array.clone().requires_grad_(need) for array, need in zip(given, needed, strict=True)]
    results = attend(*copies)
    loss = sum((result * torch.arange(result.numel()).view_as(result).cos()).sum() for result in results)
    assert isinstance(loss, Tensor)
    learned = [copy for copy, need in zip(copies, needed, strict=True) if need]
    return [*results, *torch.autograd.grad(loss, learned)]


@settings(max_examples=12)
@given(
    batch=st.integers(1, 2),
    latents=st.integers(1, 20),
    channels=st.integers(2, 18),
    grid=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    statistics=st.booleans(),
)
def test_kernels_match_plain_torch(
    batch: int, latents: int, channels: int, grid: list[int], statistics: bool
) -> None:
    given = arguments(batch, latents, channels, grid)
    expected = results_and_gradients(partial(separable._Attention.apply, True), given, statistics)
    found = results_and_gradients(attend_by_kernels, given, statistics)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_kernels_match_with_several_programs_per_sample() -> None:
    given = arguments(batch=1, latents=150, channels=5, grid=[3, 17])
    expected = results_and_gradients(partial(separable._Attention.apply, True), given, True)
    for one, other in zip(results_and_gradients(attend_by_kernels, given, True), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_model_with_two_grids_matches_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = ImageInput(height=6, width=5, channels=1)
    video = VideoInput(frames=2, height=4, width=4, patch=(1, 2, 2), bands=2)
    model = random_model(
        ModelConfig(latents=4, width=8, heads=2, cross_attention="separable", image=image, video=video)
    ).double()
    arrays = {
        name: torch.randint(0, 256, (2, *spec.array_shape), dtype=torch.uint8)
        for name, spec in model.config.modalities.items()
    }
    found = []
    for by_kernels in (False, True):
        monkeypatch.setattr(separable, "_has_kernels", lambda *_, chosen=by_kernels: chosen)
        loss = model(arrays, {}, next(iter(HEADS))).logsumexp(1).sum()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_large_rows_are_left_to_plain_torch() -> None:
    assert grid_kernels.fits(columns=224, channels=5)
    assert not grid_kernels.fits(columns=224, channels=386)
    assert not grid_kernels.fits(columns=300, channels=5)
    assert not separable._has_kernels(torch.zeros(1, 1, 5), [torch.zeros(1, 1, 4)] * 2)
