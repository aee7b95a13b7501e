"""Multi-head attention among latents: torch's fused kernel, or plain products in bf16 on CPUs with units for them.

Shapes: B batch, H heads, N latents, d channels of a head.

Torch's fused kernel for CPUs reached 90 of the 470 GFLOP/s in bf16 that a matrix product reached on one core
(docs/experiments.md). Latents are few, so the scores of a sample, (H, N, N), fit into a cache, and plain matrix
products are faster: S = q k^T, P = softmax(S), O = P v; backward, with dP = dO v^T,

    dS = P * (dP - delta),  delta = sum_j P_j dP_j = dO . O,    dv = P^T dO,  dq = dS k,  dk = dS^T q.

P is recomputed in backward, as in the fused kernel (FlashAttention, arXiv 2205.14135, section 3.1): memory for one
sample's scores at a time.

Precision: a product of bf16 matrices accumulates in fp32, but its result is rounded to bf16, to 8 bits. A score of 50
would be off by up to 0.125, and its weight by 13%. A softmax does not change when a constant is subtracted from a row,
and subtracting before the rounding is free, as part of the product: baddbmm. So the product is computed twice, the
second time minus the row's peak. Then large weights, whose scores are near the peak, come from nearly exact scores,
and rounding affects small weights only: error and weight of a score at distance x are 2^-9 x and exp(-x). In the same
way dP is computed minus delta.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

_MULTIPLIES_BF16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
"""Whether this CPU multiplies bf16 matrices in hardware (with AMX or without). Emulated products took twice the time of
the fused kernel in the forward pass."""

_CHUNK_SCORES = 2**21
"""Scores computed at a time, 4 MiB in bf16, if a sample does not have more: one sample of the ImageNet model. A quarter
of that took the same time; an eighth, a matrix product of a single head, 10 to 20% longer (docs/experiments.md)."""


def attend_to_each_other(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query . key / sqrt(d)) value, for each head.

    Args:
        query: (B, H, N, d).
        key: (B, H, N, d).
        value: (B, H, N, d).

    Returns:
        (B, H, N, d) in the inputs' dtype.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and _MULTIPLIES_BF16:
        # Autocast would compute the softmax in fp32 and round its result.
        with torch.autocast("cpu", enabled=False):
            result: Tensor = _Attention.apply(query, key, value)
            return result
    return F.scaled_dot_product_attention(query, key, value)


class _Attention(torch.autograd.Function):
    """Attention by matrix products, see the module; in any dtype, though only bf16 needs it."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map three (B, H, N, d) to (B, H, N, d)."""
        # In memory (B, N, H, d), as the fused kernel's: joining the heads then takes no copy.
        attended = query.new_empty(query.transpose(1, 2).shape).transpose(1, 2)
        peaks = query.new_empty((*query.shape[:3], 1))
        for samples in _chunks(query):
            q, k, v = (array[samples].flatten(0, 1) for array in (query, key, value))
            scores = _scores(q, k, q.new_zeros(()))
            peak = scores.amax(-1, keepdim=True)
            weights = _softmax_(_scores(q, k, peak, out=scores))
            attended[samples] = (weights @ v).view(attended[samples].shape)
            peaks[samples] = peak.view(peaks[samples].shape)
        ctx.save_for_backward(query, key, value, attended, peaks)
        return attended

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, attended_grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value, each (B, H, N, d)."""
        query, key, value, attended, peaks = ctx.saved_tensors
        deltas = (attended_grad.float() * attended).sum(-1, keepdim=True).to(query.dtype)
        results = query_grad, key_grad, value_grad = tuple(torch.empty_like(attended) for _ in range(3))
        for samples in _chunks(query):
            arrays = (query, key, value, attended_grad, peaks, deltas)
            q, k, v, grad, peak, delta = (array[samples].flatten(0, 1) for array in arrays)
            weights = _softmax_(_scores(q, k, peak))
            weights_grad = torch.baddbmm(delta, grad, v.transpose(1, 2), beta=-1)
            # The kernel of softmax's backward: P * (dP - sum P dP). The sum is what rounding left of delta.
            scores_grad = torch.ops.aten._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
            parts = (
                _scaled(scores_grad, k),
                _scaled(scores_grad.transpose(1, 2), q),
                weights.transpose(1, 2) @ grad,
            )
            for result, part in zip(results, parts, strict=True):
                result[samples] = part.view(result[samples].shape)
        return query_grad, key_grad, value_grad


def _scores(query: Tensor, key: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """Return query . key / sqrt(d) - shift, rounded once: (h, N, d), (h, N, d), (h, N, 1) or () to (h, N, N)."""
    return torch.baddbmm(shift, query, key.transpose(1, 2), beta=-1, alpha=query.shape[-1] ** -0.5, out=out)


def _softmax_(scores: Tensor) -> Tensor:
    """Return the softmax over the last axis, in the same memory: a new array of this size costs page faults."""
    return torch.softmax(scores, -1, out=scores)


def _scaled(scores_grad: Tensor, other: Tensor) -> Tensor:
    """Return scores_grad @ other / sqrt(d), rounded once: (h, N, N), (h, N, d) to (h, N, d)."""
    return torch.baddbmm(other.new_zeros(()), scores_grad, other, beta=0, alpha=other.shape[-1] ** -0.5)


def _chunks(query: Tensor) -> Iterator[slice]:
    """Yield slices of samples that cover (B, H, N, d), each with at most `_CHUNK_SCORES` scores or one sample."""
    batch, heads, rows, _ = query.shape
    size = max(1, _CHUNK_SCORES // (heads * rows * rows))
    for first in range(0, batch, size):
        yield slice(first, first + size)
