"""Tests of the Triton kernels against plain torch, run by test_grid_kernels.py in Triton's interpreter.

The interpreter multiplies like numpy: products of bfloat16 numbers are exact and added in fp32, as on tensor cores,
except that those cut off sums where numpy rounds them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import HEADS, random_model
from torch import Tensor

from perceiver_dist.modalities import ImageInput, VideoInput
from perceiver_dist.model import separable
from perceiver_dist.model.attention import DenseTokens
from perceiver_dist.model.factored import FactoredTokens
from perceiver_dist.model.grid_attention import attend_by_kernels
from perceiver_dist.model.inputs import Tokenizer, Tokens
from perceiver_dist.model.model_config import ModelConfig

Attend = Callable[..., tuple[Tensor, ...]]
by_kernels_in_fp64 = partial(attend_by_kernels, products=torch.float64)


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
    loss = sum(
        (result * torch.arange(result.numel()).view_as(result).cos().to(result.dtype)).sum()
        for result in results
    )
    assert isinstance(loss, Tensor)
    learned = [copy for copy, need in zip(copies, needed, strict=True) if need]
    return [*results, *torch.autograd.grad(loss, learned)]


def compare(given: list[Tensor], statistics: bool) -> None:
    expected = results_and_gradients(partial(separable._Attention.apply, True), given, statistics)
    found = results_and_gradients(by_kernels_in_fp64, given, statistics)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Relative errors, as norm of the difference over norm."""
    return [
        float((one.double() - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)
    ]


@settings(max_examples=10)
@given(
    batch=st.integers(1, 2),
    latents=st.integers(1, 20),
    channels=st.integers(2, 18),
    grid=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    statistics=st.booleans(),
)
def test_kernels_match_plain_torch(
    batch: int, latents: int, channels: int, grid: list[int], statistics: bool
) -> None:
    compare(arguments(batch, latents, channels, grid), statistics)


@pytest.mark.parametrize(
    ("latents", "channels", "grid"),
    [
        (66, 5, (3, 33)),  # two programs by latents, two by columns, the second of each almost empty
        (3, 5, (67, 2)),  # pieces of rows, the last of which is not full
        (3, 55, (3, 4)),  # the most features without a lead
        (3, 56, (2, 3)),  # the fewest with one
        (2, 386, (2, 3)),  # a patch of AudioSet's video: several chunks of the lead
    ],
)
def test_kernels_match_with_several_programs(latents: int, channels: int, grid: Sequence[int]) -> None:
    compare(arguments(1, latents, channels, grid), statistics=True)


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_large_scores_neither_overflow_nor_vanish(products: torch.dtype) -> None:
    """The largest scores are in rows that the first choice of a shift does not look at, 2,000 above those it does."""
    given = arguments(1, 3, 5, (40, 3))
    given[3] = torch.ones_like(given[3])
    given[4] = given[4] + torch.arange(40) % 16 * 150.0 - 1000.0
    exact = results_and_gradients(partial(separable._Attention.apply, True), given, True)
    single = [array.float() for array in given]
    found = results_and_gradients(partial(attend_by_kernels, products=products), single, True)
    # Scores of 1,300 have errors of 1e-4 in fp32, and in 16 bits of 1e-2.
    tolerance = {torch.float32: 2e-3, torch.bfloat16: 1e-1}[products]
    assert max(errors(found, exact)[:4]) < tolerance
    assert all(array.isfinite().all() for array in found)


def image_tokens(height: int, width: int, dtype: torch.dtype) -> Tokens:
    spec = ImageInput(height=height, width=width, channels=3, bands=16)
    pictures = torch.randint(
        0, 256, (1, *spec.array_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return Tokenizer("image", spec).to(dtype)(pictures)


def attended_and_gradient(attend: Callable[[Tensor], Tensor], query: Tensor) -> list[Tensor]:
    learned = query.clone().requires_grad_()
    attended = attend(learned)
    weights = torch.arange(attended.numel()).view_as(attended).cos().to(attended.dtype)
    return [attended.detach(), *torch.autograd.grad((attended * weights).sum(), learned)]


@pytest.fixture(params=[1.0, 10.0], ids=["flat", "peaked"])
def query(request: pytest.FixtureRequest) -> Tensor:
    """Queries whose scores have this standard deviation or so."""
    channels = sum(image_tokens(2, 2, torch.float64).channels)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn((1, 16, channels), dtype=torch.float64, generator=generator)
    return random * (request.param / math.sqrt(channels))


def test_fp32_is_as_exact_as_plain_torch(monkeypatch: pytest.MonkeyPatch, query: Tensor) -> None:
    exact = attended_and_gradient(
        FactoredTokens([image_tokens(24, 40, torch.float64)], None, by_axis=True).attend, query
    )
    tokens = FactoredTokens([image_tokens(24, 40, torch.float32)], None, by_axis=True)
    plain = attended_and_gradient(tokens.attend, query.float())
    monkeypatch.setattr(separable, "_has_kernels", lambda _: True)
    found = attended_and_gradient(tokens.attend, query.float())
    for error, of_plain in zip(errors(found, exact), errors(plain, exact), strict=True):
        assert error < 3 * of_plain


def test_bf16_is_more_exact_than_dense_attention(monkeypatch: pytest.MonkeyPatch, query: Tensor) -> None:
    exact = attended_and_gradient(
        FactoredTokens([image_tokens(24, 40, torch.float64)], None, by_axis=True).attend, query
    )
    tokens = image_tokens(24, 40, torch.float32)
    dense = attended_and_gradient(DenseTokens([tokens], None, torch.bfloat16).attend, query.bfloat16())
    monkeypatch.setattr(separable, "_has_kernels", lambda _: True)
    attend = torch.autocast("cpu", dtype=torch.bfloat16)(FactoredTokens([tokens], None, by_axis=True).attend)
    found = attended_and_gradient(attend, query.float())
    for error, of_dense in zip(errors(found, exact), errors(dense, exact), strict=True):
        assert (
            1e-5 < error < of_dense
        )  # more than fp32 would have: the run's precision arrives at the kernels


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
        monkeypatch.setattr(separable, "_has_kernels", lambda _, chosen=by_kernels: chosen)
        loss = model(arrays, {}, next(iter(HEADS))).logsumexp(1).sum()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
