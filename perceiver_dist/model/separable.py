"""Cross-attention to a grid whose Fourier positions are separate by axis: scores are sums of a term per axis.

The position features of token (y, x) are [F_y | F_x]: those of its row and those of its column (factored.py has
the rest of the notation). So q_F . F_(y, x) = q_y . F_y + q_x . F_x, and with A = q_y F_y^T, (N, rows), and
B = q_x F_x^T, (N, columns), which take next to nothing to make, the score of a token is

    q . xhat = rstd * ( r . u(y, x)  +  A(y) + B(x) ),                                u = [c | 1 | mean].

Of the products with the M tokens only that with u is left: c + 2 channels in place of C. What comes back separates
in the same way. With w = softmax(scores) * rstd,

    sum w F = [ sum_y (sum_x w) F_y | sum_x (sum_y w) F_x ]:   sums of w along each axis, then products with A's size,

and so does backward, since dP = dO . xhat has the form of the scores with dO in place of q (factored.py). It holds
for any number of axes. At the paper's ImageNet setting a cross-attend has 3 GFLOPs instead of 43; what takes the time
is walking over N * M scores, which are made a tile at a time, of a few latents and the whole grid, and never kept. On
CUDA the walk is a Triton kernel (grid_kernels.py).
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.model.positions import axis_channels

# Scores in one tile: 2**20 fp32 values are 4 MB, the L2 cache of two CPU cores. CUDA: not measured.
_TILE_SCORES = {"cpu": 2**20, "cuda": 2**26}


def attend_to_grid(
    query: Tensor, position_query: Tensor, own: Tensor, tables: Sequence[Tensor], mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Average the parts of a grid's normalised tokens with the softmax of their scores as weights.

    Args:
        query: (B, N, A), for the tokens' own features u.
        position_query: (B, N, P), for their positions, channels as `axis_channels` says.
        own: (B, M, A), u; gets no gradient. Its last channel is `mean`, whose gradient is made here.
        tables: (size, 2K + 1) position features of each of the grid's axes.
        mean: (B, M).
        rstd: (B, M).

    Returns:
        Sums over tokens of weight * rstd * u, (B, N, A), and of weight * rstd * position, (B, N, P), and the
        log-sum-exp of the scores, (B, N).
    """
    channels = axis_channels(tables)
    parts = zip(channels, tables, strict=True)
    axis_scores = [position_query[..., of_axis] @ table.T for of_axis, table in parts]
    if _has_kernels(query, axis_scores):
        from perceiver_dist.model.grid_attention import attend_by_kernels

        attend: Callable[..., tuple[Tensor, ...]] = attend_by_kernels
    else:
        attend = _Attention.apply
    own_sum, normaliser, *axis_sums = attend(query, own, mean, rstd, *axis_scores)
    in_axis_order = torch.cat([part @ table for part, table in zip(axis_sums, tables, strict=True)], dim=-1)
    return own_sum, in_axis_order[..., torch.cat(channels).argsort()], normaliser


def _has_kernels(query: Tensor, axis_scores: Sequence[Tensor]) -> bool:
    """Whether this device and this grid have Triton kernels (grid_kernels.py); Triton comes with torch for CUDA."""
    if query.device.type != "cuda" or not _triton_is_installed():
        return False
    from perceiver_dist.model.grid_kernels import fits

    return fits(axis_scores[-1].shape[-1], query.shape[-1])


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


class _Attention(torch.autograd.Function):
    """The softmax between scores and sums; gradients for all but `own`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        own: Tensor,
        mean: Tensor,  # noqa: ARG004  # the last channel of `own`, an argument for its gradient's sake
        rstd: Tensor,
        *axis_scores: Tensor,
    ) -> tuple[Tensor, ...]:
        """(B, N, A), (B, M, A), (B, M), (B, M), (B, N, size)... -> (B, N, A), (B, N), (B, N, size)..."""
        keys = (own * rstd[..., None]).transpose(1, 2)
        scale = rstd.view(rstd.shape[0], 1, *(scores.shape[-1] for scores in axis_scores))
        own_sum, normaliser = torch.empty_like(query), torch.empty_like(query[..., 0])
        axis_sums = [torch.empty_like(scores) for scores in axis_scores]
        for samples, rows in _tiles(query, own):
            weights = _products(
                query[samples, rows], keys[samples], [a[samples, rows] for a in axis_scores], scale[samples]
            )
            peak = weights.amax(-1, keepdim=True)
            total = weights.sub_(peak).exp_().sum(-1, keepdim=True)
            normaliser[samples, rows] = (peak + total.log())[..., 0]
            own_sum[samples, rows] = (weights @ keys[samples].transpose(1, 2)) / total
            for result, part in zip(axis_sums, _sums_by_axis(weights, scale[samples]), strict=True):
                result[samples, rows] = part / total
        ctx.save_for_backward(query, own, rstd, own_sum, normaliser, *axis_scores, *axis_sums)
        return own_sum, normaliser, *axis_sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, own_grad: Tensor, normaliser_grad: Tensor, *axis_grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients in the order of forward's arguments."""
        query, own, rstd, own_sum, normaliser, *by_axis = ctx.saved_tensors
        axis_scores, axis_sums = by_axis[: len(axis_grads)], by_axis[len(axis_grads) :]
        shift = (own_grad * own_sum).sum(-1) - normaliser_grad
        for gradient, of_axis in zip(axis_grads, axis_sums, strict=True):
            shift = shift + (gradient * of_axis).sum(-1)
        keys = (own * rstd[..., None]).transpose(1, 2)
        scale = rstd.view(rstd.shape[0], 1, *(scores.shape[-1] for scores in axis_scores))
        statistics = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        query_grad = torch.empty_like(query)
        score_grads = [torch.empty_like(scores) for scores in axis_scores]
        mean_grad, rstd_grad = torch.zeros_like(rstd), torch.zeros_like(rstd)
        for samples, rows in _tiles(query, own):
            key, by = keys[samples], scale[samples]
            scores = _products(query[samples, rows], key, [a[samples, rows] for a in axis_scores], by)
            value_grad = _products(own_grad[samples, rows], key, [a[samples, rows] for a in axis_grads], by)
            if statistics:
                weights = (scores - normaliser[samples, rows, None]).exp_()
                score_grad = (value_grad - shift[samples, rows, None]).mul_(weights)
                # xhat = rstd * (x - mean), so d/d rstd is (gradient of xhat) . xhat / rstd: products in the tiles.
                mean_grad[samples] += _last_channel(score_grad, query[samples, rows])
                mean_grad[samples] += _last_channel(weights, own_grad[samples, rows])
                rstd_grad[samples] += scores.mul_(score_grad).sum(1) + weights.mul_(value_grad).sum(1)
            else:
                weights = scores.sub_(normaliser[samples, rows, None]).exp_()
                score_grad = value_grad.sub_(shift[samples, rows, None]).mul_(weights)
            query_grad[samples, rows] = score_grad @ key.transpose(1, 2)
            for result, part in zip(score_grads, _sums_by_axis(score_grad, by), strict=True):
                result[samples, rows] = part
        optional = (mean_grad.mul_(rstd), rstd_grad.div_(rstd)) if statistics else (None, None)
        return query_grad, None, *optional, *score_grads


def _tiles(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices (samples, latents) that cover (B, N), each with a bounded number of scores if one latent's fit."""
    (batch, rows, _), count = queries.shape, keys.shape[1]
    budget = max(1, _TILE_SCORES.get(queries.device.type, _TILE_SCORES["cuda"]) // count)
    tile_rows, tile_samples = min(rows, budget), max(1, budget // rows)
    for sample in range(0, batch, tile_samples):
        for row in range(0, rows, tile_rows):
            yield slice(sample, sample + tile_samples), slice(row, row + tile_rows)


def _products(query: Tensor, keys: Tensor, by_axis: Sequence[Tensor], scale: Tensor) -> Tensor:
    """(b, n, M): query . key + scale * (a term per axis), the keys having the scale in them already."""
    axes = len(by_axis)
    terms = [
        values.view(*values.shape[:2], *(-1 if other == axis else 1 for other in range(axes)))
        for axis, values in enumerate(by_axis)
    ]
    # From the last axes on, so that all but the last sum are over less than the grid.
    total = terms[-1]
    for term in reversed(terms[:-1]):
        total = total + term
    products = (total * scale if axes == 1 else total.mul_(scale)).flatten(2)
    return products.baddbmm_(query, keys)


def _sums_by_axis(weights: Tensor, scale: Tensor) -> list[Tensor]:
    """(b, n, size) for each axis: the sums of weights (b, n, M) times scale over all other axes. Spoils weights."""
    grid = weights.view(*weights.shape[:2], *scale.shape[2:]).mul_(scale)
    sums = []
    for _ in scale.shape[3:]:
        sums.append(grid.flatten(3).sum(-1))
        grid = grid.sum(2)
    return [*sums, grid]


def _last_channel(weights: Tensor, queries: Tensor) -> Tensor:
    """(b, M): sum over the tile's queries of weights (b, n, M) times the queries' last channel."""
    return (queries[:, None, :, -1] @ weights)[:, 0]
