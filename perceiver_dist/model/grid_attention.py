"""Autograd function around the Triton kernels of grid_kernels.py: the attention of separable.py on CUDA."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.model import grid_kernels


def attend_by_kernels(
    query: Tensor, features: Tensor, mean: Tensor, rstd: Tensor, *axis_scores: Tensor, products: torch.dtype
) -> tuple[Tensor, ...]:
    """Return softmax-weighted sums over a grid, like `separable._Attention`, by kernels for two axes.

    The grid's last axis gives the columns; all others are merged into rows.

    Args:
        query: (B, N, A).
        features: (B, M, A), which get no gradient. Their last channel is `mean`, which does.
        mean: (B, M).
        rstd: (B, M).
        axis_scores: (B, N, size) for each of the grid's axes, at least one.
        products: Precision of the products, see grid_kernels.py.

    Returns:
        The sums of features, (B, N, A), the log-sum-exp of the scores, (B, N), and for each axis the sums over all
        other axes, (B, N, size).
    """
    *others, column_scores = axis_scores
    row_scores = others[0] if others else torch.zeros_like(query[..., :1])
    for scores in others[1:]:
        row_scores = (row_scores[..., :, None] + scores[..., None, :]).flatten(2)
    feature_sum, normaliser, row_sums, column_sums = _Attention.apply(
        query, features, mean, rstd, row_scores, column_scores, products
    )
    sizes = [scores.shape[-1] for scores in others]
    sums_by_axis = [
        row_sums.unflatten(2, (prod(sizes[:axis]), size, prod(sizes[axis + 1 :]))).sum((2, 4))
        for axis, size in enumerate(sizes)
    ]
    return feature_sum, normaliser, *sums_by_axis, column_sums


class _Attention(torch.autograd.Function):
    """Softmax and sums over rows and columns, with gradients for all but `features`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        features: Tensor,
        mean: Tensor,  # noqa: ARG004  # the last channel of `features`, an argument so that it gets a gradient
        rstd: Tensor,
        row_scores: Tensor,
        column_scores: Tensor,
        products: torch.dtype,
    ) -> tuple[Tensor, ...]:
        """Map (B, N, A), (B, M, A), 2 (B, M), (B, N, R), (B, N, W) to (B, N, A), (B, N), (B, N, R), (B, N, W)."""
        results = grid_kernels.forward(query, features, rstd, row_scores, column_scores, products)
        ctx.products = products
        ctx.save_for_backward(query, features, rstd, row_scores, column_scores, *results)
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, feature_grad: Tensor, normaliser_grad: Tensor, row_grads: Tensor, column_grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of forward's arguments."""
        query, features, rstd, row_scores, column_scores, feature_sum, normaliser, row_sums, column_sums = (
            ctx.saved_tensors
        )
        shift = (feature_grad * feature_sum).sum(-1) - normaliser_grad
        shift = shift + (row_grads * row_sums).sum(-1) + (column_grads * column_sums).sum(-1)
        statistics = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        query_grad, row_score_grads, column_score_grads, mean_sums, rstd_sums = grid_kernels.backward(
            query, features, rstd, row_scores, column_scores, ctx.products,
            normaliser, shift, feature_grad, row_grads, column_grads, statistics,
        )  # fmt: skip
        optional = (None, None)
        if mean_sums is not None and rstd_sums is not None:
            # The kernel's sums lack these factors of rstd; see factored.py.
            optional = (mean_sums * rstd, rstd_sums / rstd)
        return query_grad, None, *optional, row_score_grads, column_score_grads, None
