"""Tests of bf16 on CPUs: the same as other ways in fp64, and in bf16 as close to fp64 as torch's fused kernels."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SMALL, random_arrays, random_model
from torch import Tensor

from perceiver_dist.modalities import ImageInput
from perceiver_dist.model import factored, self_attention
from perceiver_dist.model.model_config import CrossAttentionPath, ModelConfig
from perceiver_dist.model.perceiver import Perceiver

SIDE = 32
IMAGE_MODEL = ModelConfig(
    latents=64, width=64, cross_attends=3, self_attends_per_block=3, heads=2,
    image=ImageInput(height=SIDE, width=SIDE, channels=3, patch=1, bands=8),
)  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def output_and_gradients(attend: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attend(*leaves)
    towards = random(*output.shape, seed=1).bfloat16().to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, towards)]


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), heads=st.integers(1, 3), rows=st.integers(1, 9), chunk=st.integers(1, 400))
def test_attention_by_products_is_attention(batch: int, heads: int, rows: int, chunk: int) -> None:
    inputs = [random(batch, heads, rows, 5, seed=number) for number in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_attention, "_CHUNK_SCORES", chunk)
        found = output_and_gradients(self_attention._Attention.apply, inputs)
    for one, other in zip(found, output_and_gradients(F.scaled_dot_product_attention, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", [0.5, 1, 3, 6])
def test_rounding_of_scores_costs_little_accuracy_however_large_they_are(size: float) -> None:
    """Queries and keys of standard deviation `size`, so scores of `size` squared: up to 36, peaks above 100."""
    scale = (size, size, 1)
    inputs = [random(1, 4, 256, 64, seed=n).mul(scale[n]).bfloat16().double() for n in range(3)]
    exact = output_and_gradients(F.scaled_dot_product_attention, inputs)
    rounded = [tensor.bfloat16() for tensor in inputs]
    fused = output_and_gradients(F.scaled_dot_product_attention, rounded)
    for found, kernel, true in zip(
        output_and_gradients(self_attention._Attention.apply, rounded), fused, exact, strict=True
    ):
        # bf16 has 8 bits: results of both are off by about 0.002. Without the shift by the peak it is 0.03 to 0.1.
        assert relative_error(found, true) <= 2 * relative_error(kernel, true)


def logits_and_gradient(path: CrossAttentionPath, seed: int, exact: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Perceiver(replace(IMAGE_MODEL, cross_attention=path), {"source": 20})
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not exact):
        logits = (model.double() if exact else model)({"image": image}, {}, "source")
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(logits.double().logsumexp(1).sum(), parameters)
    return [logits.detach(), torch.cat([gradient.double().flatten() for gradient in gradients])]


def test_a_model_in_bf16_is_as_accurate_as_the_dense_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense way: all tokens as one array, and torch's fused attention everywhere. Means of four models."""
    ours, dense = torch.zeros(2), torch.zeros(2)
    for seed in range(4):
        exact = logits_and_gradient("dense", seed, exact=True)
        for total, path, by_products in ((ours, "separable", True), (dense, "dense", False)):
            monkeypatch.setattr(self_attention, "_MULTIPLIES_BF16", by_products)
            found = logits_and_gradient(path, seed)  # type: ignore[arg-type] # one of the two above
            total += torch.tensor([relative_error(*pair) for pair in zip(found, exact, strict=True)])
    assert (ours <= 1.1 * dense).all(), (ours / 4, dense / 4)


@pytest.mark.parametrize("modalities", [("image",), ("image", "video")])
def test_the_fused_softmax_changes_only_rounding(
    modalities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(
        latents=4, width=8, heads=2, cross_attention="separable", **{name: SMALL[name] for name in modalities}
    )
    model, arrays = random_model(config).double(), random_arrays(config, 2)

    def results() -> list[Tensor]:
        logits = model(arrays, {}, "clips")
        weights = torch.arange(logits.numel(), dtype=logits.dtype).view_as(logits).cos()
        return [logits, *torch.autograd.grad((logits * weights).sum(), list(model.parameters()))]

    expected = results()
    monkeypatch.setattr(factored, "compute_dtype", lambda _: torch.bfloat16)
    for found, other in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, other, atol=1e-10, rtol=1e-10)


def test_a_cpu_without_bf16_units_uses_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (random(1, 2, 16, 8, seed=number).bfloat16() for number in range(3))
    monkeypatch.setattr(self_attention, "_MULTIPLIES_BF16", False)
    found = self_attention.attend_to_each_other(query, key, value)
    assert torch.equal(found, F.scaled_dot_product_attention(query, key, value))
