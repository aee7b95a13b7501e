"""Cross-attention to a grid with Fourier positions, whose position scores are sums of one term per axis.

Shapes: B batch, M = R * W tokens of a grid of R rows and W columns, N latents, A = c + 2 feature channels. The Fourier
features of token (y, x) are [F_y | F_x], those of its row and those of its column. So with A_y = q_y . F_y, (N, R), and
B_x = q_x . F_x, (N, W), both small matrix products, the score of factored.py becomes

    q . xhat = rstd * (r . u_yx  +  A_y + B_x),    u = [c | 1 | mean].

Of the product with all M tokens only the one with u is left: A channels instead of C. The sums separate as well. With
w = p * rstd, p = softmax(scores),

    sum_yx w F = [sum_y (sum_x w) F_y | sum_x (sum_y w) F_x]:

sums of w along each axis, then products of the size of A_y and B_x. Backward has the same form, since dP = dO . xhat is
a score with dO in place of q (factored.py). Nothing is approximated, and any number of axes works.

At the paper's ImageNet setting a cross-attend takes 3 GFLOPs, as the paper formulates it 43. The remaining time goes
into visiting N * M scores. They are computed one tile at a time, a few latents by the whole grid, and never kept; on
CUDA by Triton kernels (grid_kernels.py).
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.model.positions import axis_channels

_TILE_SCORES = {"cpu": 2**20, "cuda": 2**26}
"""Scores in one tile. On CPUs 2**20 fp32 scores are 4 MiB; 2**19 took 13% longer, 2**21 more than three times as long
(docs/experiments.md). On CUDA 2**26 (256 MiB in fp32) is a guess that bounds memory, for fp64 and old cards."""


class AxisOrder:
    """Places of each axis' features among the channels of a position, for reordering whole arrays (..., P).

    Made once for all cross-attends of a forward pass, since it takes a sort.
    """

    def __init__(self, tables: Sequence[Tensor]) -> None:
        """Find the places.

        Args:
            tables: (size, 2K + 1) for each axis of the grid, its position features.
        """
        self.widths = [table.shape[1] for table in tables]
        self.by_axis = torch.cat(axis_channels(tables))
        self.of_position = self.by_axis.argsort()


def attend_to_grid(
    query: Tensor,
    position_query: Tensor,
    features: Tensor,
    tables: Sequence[Tensor],
    order: AxisOrder,
    mean: Tensor,
    rstd: Tensor,
    products: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sums over a grid's tokens, with the softmax of their scores as weights p.

    Args:
        query: (B, N, A), the part r of the query that meets the features u.
        position_query: (B, N, P), the part that meets positions, channels in the order of `axis_channels`.
        features: (B, M, A), u, which gets no gradient. Its last channel is `mean`, which does.
        tables: (size, 2K + 1) for each axis of the grid, its position features.
        order: Made from `tables`.
        mean: (B, M).
        rstd: (B, M).
        products: Dtype of the run's matrix products. The kernels for CUDA follow it (grid_kernels.py); the tiles for
            CPUs keep the bits of earlier versions unless it is bf16. All arrays are in fp32 or fp64.

    Returns:
        Sums over tokens of p * rstd * u, (B, N, A), and of p * rstd * position, (B, N, P), and the log-sum-exp of the
        scores, (B, N).
    """
    reordered: Tensor = _Reordered.apply(position_query, order.by_axis, order.of_position)
    parts = zip(torch.split(reordered, order.widths, dim=-1), tables, strict=True)
    # Contiguous, since the products of strided arrays differ in the last bits.
    axis_scores = [part.contiguous() @ table.T for part, table in parts]  # A_y and B_x
    if _has_kernels(query):
        from perceiver_dist.model.grid_attention import attend_by_kernels

        attend: Callable[..., tuple[Tensor, ...]] = partial(attend_by_kernels, products=products)
    else:
        attend = partial(_Attention.apply, products != torch.bfloat16)
    feature_sum, normaliser, *axis_sums = attend(query, features, mean, rstd, *axis_scores)
    by_axis = torch.cat([part @ table for part, table in zip(axis_sums, tables, strict=True)], dim=-1)
    return feature_sum, _Reordered.apply(by_axis, order.of_position, order.by_axis), normaliser


def _has_kernels(query: Tensor) -> bool:
    """Return whether the Triton kernels (grid_kernels.py) can be used here.

    Triton comes with torch for CUDA. The kernels compute in bfloat16, from compute capability 8.0 on, and in fp32.
    """
    return (
        query.device.type == "cuda"
        and query.dtype == torch.float32
        and _triton_is_installed()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


class _Reordered(torch.autograd.Function):
    """Channels in another order. Its gradient is the same with the inverse order; indexing has a slow general one."""

    @staticmethod
    def forward(ctx: Any, array: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """Map (..., P), (P,), (P,) to (..., P)."""
        ctx.save_for_backward(inverse)
        return array.index_select(-1, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradients in the order of forward's arguments."""
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(-1, inverse), None, None


class _Attention(torch.autograd.Function):
    """Softmax and sums over the grid in plain torch, with gradients for all but `features`.

    In the notation of factored.py, `value_grad` is dP and `score_grad` is dS. Torch's fused softmax takes half the time
    of its parts, amax, subtraction, exp_ and sum, but rounds differently; `reproducible` excludes it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        reproducible: bool,
        query: Tensor,
        features: Tensor,
        mean: Tensor,  # noqa: ARG004  # the last channel of `features`, an argument so that it gets a gradient
        rstd: Tensor,
        *axis_scores: Tensor,
    ) -> tuple[Tensor, ...]:
        """Map a flag, (B, N, A), (B, M, A), (B, M), (B, M), (B, N, size)... to (B, N, A), (B, N), (B, N, size)..."""
        keys = (features * rstd[..., None]).transpose(1, 2)
        scale = rstd.view(rstd.shape[0], 1, *(scores.shape[-1] for scores in axis_scores))
        feature_sum, normaliser = torch.empty_like(query), torch.empty_like(query[..., 0])
        axis_sums = [torch.empty_like(scores) for scores in axis_scores]
        for samples, rows in _tiles(query, features):
            scores = _products(
                query[samples, rows], keys[samples], [a[samples, rows] for a in axis_scores], scale[samples]
            )
            peak = scores.amax(-1, keepdim=True)
            if reproducible:
                weights = scores.sub_(peak).exp_()
                total = weights.sum(-1, keepdim=True)
                normaliser[samples, rows] = (peak + total.log())[..., 0]
            else:
                weights = torch.softmax(scores, -1, out=scores)
                total = weights.new_ones(())
                # The largest weight is exp(peak - log-sum-exp).
                normaliser[samples, rows] = (peak - weights.amax(-1, keepdim=True).log())[..., 0]
            feature_sum[samples, rows] = (weights @ keys[samples].transpose(1, 2)) / total
            for result, part in zip(axis_sums, _sums_by_axis(weights, scale[samples]), strict=True):
                result[samples, rows] = part / total
        ctx.reproducible = reproducible
        ctx.save_for_backward(query, features, rstd, feature_sum, normaliser, *axis_scores, *axis_sums)
        return feature_sum, normaliser, *axis_sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, feature_grad: Tensor, normaliser_grad: Tensor, *axis_grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of forward's arguments."""
        query, features, rstd, feature_sum, normaliser, *by_axis = ctx.saved_tensors
        axis_scores, axis_sums = by_axis[: len(axis_grads)], by_axis[len(axis_grads) :]
        shift = (feature_grad * feature_sum).sum(-1) - normaliser_grad
        for gradient, of_axis in zip(axis_grads, axis_sums, strict=True):
            shift = shift + (gradient * of_axis).sum(-1)
        keys = (features * rstd[..., None]).transpose(1, 2)
        scale = rstd.view(rstd.shape[0], 1, *(scores.shape[-1] for scores in axis_scores))
        statistics = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        query_grad = torch.empty_like(query)
        score_grads = [torch.empty_like(scores) for scores in axis_scores]
        mean_grad, rstd_grad = torch.zeros_like(rstd), torch.zeros_like(rstd)
        for samples, rows in _tiles(query, features):
            key, by = keys[samples], scale[samples]
            scores = _products(query[samples, rows], key, [a[samples, rows] for a in axis_scores], by)
            value_grad = _products(
                feature_grad[samples, rows], key, [a[samples, rows] for a in axis_grads], by
            )
            if ctx.reproducible:
                weights = torch.sub(
                    scores, normaliser[samples, rows, None], out=None if statistics else scores
                ).exp_()
            else:
                weights = scores.softmax(-1)
            if statistics:
                score_grad = (value_grad - shift[samples, rows, None]).mul_(weights)
                # Gradients of mean and rstd, up to a factor of rstd: see factored.py.
                mean_grad[samples] += _last_channel(score_grad, query[samples, rows])
                mean_grad[samples] += _last_channel(weights, feature_grad[samples, rows])
                rstd_grad[samples] += scores.mul_(score_grad).sum(1) + weights.mul_(value_grad).sum(1)
            else:
                score_grad = value_grad.sub_(shift[samples, rows, None]).mul_(weights)
            query_grad[samples, rows] = score_grad @ key.transpose(1, 2)
            for result, part in zip(score_grads, _sums_by_axis(score_grad, by), strict=True):
                result[samples, rows] = part
        optional = (mean_grad.mul_(rstd), rstd_grad.div_(rstd)) if statistics else (None, None)
        return None, query_grad, None, *optional, *score_grads


def _tiles(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices (samples, latents) that cover (B, N), each with at most `_TILE_SCORES` scores or one latent."""
    (batch, rows, _), count = queries.shape, keys.shape[1]
    budget = max(1, _TILE_SCORES.get(queries.device.type, _TILE_SCORES["cuda"]) // count)
    tile_rows, tile_samples = min(rows, budget), max(1, budget // rows)
    for sample in range(0, batch, tile_samples):
        for row in range(0, rows, tile_rows):
            yield slice(sample, sample + tile_samples), slice(row, row + tile_rows)


def _products(query: Tensor, keys: Tensor, by_axis: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Return query . key + scale * (sum of a term per axis), (b, n, M); the keys are already scaled."""
    axes = len(by_axis)
    terms = [
        values.view(*values.shape[:2], *(-1 if other == axis else 1 for other in range(axes)))
        for axis, values in enumerate(by_axis)
    ]
    # From the last axis backwards, so that only the last of these sums is as large as the grid.
    total = terms[-1]
    for term in reversed(terms[:-1]):
        total = total + term
    products = (total * scale if axes == 1 else total.mul_(scale)).flatten(2)
    return products.baddbmm_(query, keys)


def _sums_by_axis(weights: Tensor, scale: Tensor) -> list[Tensor]:
    """Return, for each axis, weights (b, n, M) times scale summed over all other axes, (b, n, size).

    Overwrites `weights`.
    """
    grid = weights.view(*weights.shape[:2], *scale.shape[2:]).mul_(scale)
    sums = []
    for _ in scale.shape[3:]:
        sums.append(grid.flatten(3).sum(-1))
        grid = grid.sum(2)
    return [*sums, grid]


def _last_channel(weights: Tensor, queries: Tensor) -> Tensor:
    """Return the sum over queries of weights (b, n, M) times the queries' last channel: (b, M)."""
    return (queries[:, None, :, -1] @ weights)[:, 0]
