"""The attention of separable.py by the Triton kernels of grid_kernels.py, for CUDA; gradients as there."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.model import grid_kernels


def attend_by_kernels(
    query: Tensor, own: Tensor, mean: Tensor, rstd: Tensor, *axis_scores: Tensor
) -> tuple[Tensor, ...]:
    """Compute what separable.py computes tile by tile: the grid's last axis as columns, all others as rows.

    Args:
        query: (B, N, A).
        own: (B, M, A), without gradient; its last channel is `mean`, whose gradient is made here.
        mean: (B, M).
        rstd: (B, M).
        axis_scores: (B, N, size) for each of the grid's axes, at least two.

    Returns:
        (B, N, A), the log-sum-exp (B, N), and (B, N, size) for each axis.
    """
    *others, column_scores = axis_scores
    row_scores = others[0]
    for scores in others[1:]:
        row_scores = (row_scores[..., :, None] + scores[..., None, :]).flatten(2)
    own_sum, normaliser, row_sums, column_sums = _Attention.apply(
        query, own, mean, rstd, row_scores, column_scores
    )
    sizes = [scores.shape[-1] for scores in others]
    sums_by_axis = [
        row_sums.unflatten(2, (prod(sizes[:axis]), size, prod(sizes[axis + 1 :]))).sum((2, 4))
        for axis, size in enumerate(sizes)
    ]
    return own_sum, normaliser, *sums_by_axis, column_sums


class _Attention(torch.autograd.Function):
    """Sums over rows and columns; gradients for all but `own`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        own: Tensor,
        mean: Tensor,  # noqa: ARG004  # the last channel of `own`, an argument for its gradient's sake
        rstd: Tensor,
        row_scores: Tensor,
        column_scores: Tensor,
    ) -> tuple[Tensor, ...]:
        """(B, N, A), (B, M, A), (B, M), (B, M), (B, N, R), (B, N, W) -> (B, N, A), (B, N), (B, N, R), (B, N, W)."""
        keys = own * rstd[..., None]
        results = grid_kernels.forward(query, keys, rstd, row_scores, column_scores)
        ctx.save_for_backward(query, own, rstd, row_scores, column_scores, *results)
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, own_grad: Tensor, normaliser_grad: Tensor, row_grads: Tensor, column_grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients in the order of forward's arguments."""
        query, own, rstd, row_scores, column_scores, own_sum, normaliser, row_sums, column_sums = (
            ctx.saved_tensors
        )
        shift = (own_grad * own_sum).sum(-1) - normaliser_grad
        shift = shift + (row_grads * row_sums).sum(-1) + (column_grads * column_sums).sum(-1)
        statistics = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        keys = own * rstd[..., None]
        query_grad, row_score_grads, column_score_grads, mean_sums, rstd_sums = grid_kernels.backward(
            query, keys, rstd, row_scores, column_scores,
            normaliser, shift, own_grad, row_grads, column_grads, statistics,
        )  # fmt: skip
        optional = (None, None)
        if mean_sums is not None and rstd_sums is not None:
            # xhat = rstd * (x - mean), so d/d rstd is (gradient of xhat) . xhat / rstd, as in separable.py.
            optional = (mean_sums * rstd, rstd_sums / rstd)
        return query_grad, None, *optional, row_score_grads, column_score_grads
