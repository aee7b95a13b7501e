"""The softmax over a grid of separable.py as Triton kernels: scores live in registers, nothing of size N x M exists.

A grid of any number of axes is one of rows and columns: its last axis gives the columns, all others together the
rows, so that scores are

    s(n, y, x) = q(n) . k(y, x) + rstd(y, x) * (a(n, y) + b(n, x)),        k = rstd * own.

A program has some latents of a sample and walks over the rows. It does so twice: for the log-sum-exp, as
FlashAttention does (arXiv 2205.14135), and for the sums, which need no rescaling then: own sums and sums of columns
stay in registers, and the sum of a row is stored when the row is done. Backward makes the scores again from the
log-sum-exp. Gradients of mean and rstd are sums over latents, so a second kernel walks over latents with a row.

Products are made in full fp32: they have few channels, and scores must be exact. The walk is bound by exponentials
and additions, not by tensor cores. Its speed on a GPU has not been measured; that it is right is tested in Triton's
interpreter, in fp64. Not for the grids and patches that `fits` refuses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_COLUMNS = 256
_MAX_CHANNELS = 64
_SCORES = 4096
"""Of a row, in the registers of a program: with as many warps, compute capability 9.0 has room for them."""
_WARPS = 8


def fits(columns: int, channels: int) -> bool:
    """Whether a row of the grid and the tokens' own channels fit a program's registers.

    Args:
        columns: Size of the grid's last axis.
        channels: Channels A of the tokens' own features.
    """
    return columns <= _MAX_COLUMNS and channels <= _MAX_CHANNELS


def forward(
    query: Tensor, keys: Tensor, rstd: Tensor, row_scores: Tensor, column_scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum over the grid with the softmax of the scores as weights w.

    Args:
        query: (B, N, A), fp32 or fp64, as all others.
        keys: (B, R * W, A), the tokens' own features times rstd.
        rstd: (B, R * W).
        row_scores: (B, N, R).
        column_scores: (B, N, W).

    Returns:
        Sums of w * keys, (B, N, A); the log-sum-exp of the scores, (B, N); sums of w * rstd by row, (B, N, R), and by
        column, (B, N, W).
    """
    own_sum, normaliser = torch.empty_like(query), torch.empty_like(query[..., 0])
    row_sums, column_sums = torch.empty_like(row_scores), torch.empty_like(column_scores)
    sizes = _Sizes(query, row_scores, column_scores)
    _forward[sizes.latent_programs](
        *(array.contiguous() for array in (query, keys, rstd, row_scores, column_scores)),
        own_sum, normaliser, row_sums, column_sums, *sizes.counts, **sizes.tiles,
    )  # fmt: skip
    return own_sum, normaliser, row_sums, column_sums


def backward(
    query: Tensor, keys: Tensor, rstd: Tensor, row_scores: Tensor, column_scores: Tensor,
    normaliser: Tensor, shift: Tensor, own_grad: Tensor, row_grads: Tensor, column_grads: Tensor,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Make the gradients of `forward`'s arguments but the keys.

    Args:
        query: As for `forward`.
        keys: As for `forward`.
        rstd: As for `forward`.
        row_scores: As for `forward`.
        column_scores: As for `forward`.
        normaliser: (B, N), from `forward`.
        shift: (B, N), what is subtracted from each score's gradient: sum of outputs times gradients.
        own_grad: (B, N, A), of the first output.
        row_grads: (B, N, R), of the sums by row.
        column_grads: (B, N, W), of the sums by column.
        statistics: Whether gradients of the tokens' mean and rstd are needed.

    Returns:
        Of query, row scores and column scores; then sums over latents, each (B, R * W) or None: of dS * q_A + w * dO_A,
        q_A being the last channel, and of s * dS + w * dP.
    """
    arrays = (
        query,
        keys,
        rstd,
        row_scores,
        column_scores,
        normaliser,
        shift,
        own_grad,
        row_grads,
        column_grads,
    )
    shared = tuple(array.contiguous() for array in arrays)
    query_grad = torch.empty_like(query)
    row_score_grads, column_score_grads = torch.empty_like(row_scores), torch.empty_like(column_scores)
    sizes = _Sizes(query, row_scores, column_scores)
    _backward[sizes.latent_programs](
        *shared, query_grad, row_score_grads, column_score_grads, *sizes.counts, **sizes.tiles
    )
    if not statistics:
        return query_grad, row_score_grads, column_score_grads, None, None
    mean_sums, rstd_sums = torch.empty_like(rstd), torch.empty_like(rstd)
    _statistics[sizes.row_programs](*shared, mean_sums, rstd_sums, *sizes.counts, **sizes.tiles)
    return query_grad, row_score_grads, column_score_grads, mean_sums, rstd_sums


def tiles(columns: int, channels: int) -> dict[str, int]:
    """Return the sizes that kernels are compiled for.

    Args:
        columns: Size of the grid's last axis.
        channels: Channels A of the tokens' own features.
    """
    tile_columns, tile_channels = (max(16, triton.next_power_of_2(size)) for size in (columns, channels))
    tile_latents = max(16, min(64, _SCORES // max(tile_columns, 4 * tile_channels)))
    return {
        "tile_latents": tile_latents,
        "tile_columns": tile_columns,
        "tile_channels": tile_channels,
        "num_warps": _WARPS,
    }


class _Sizes:
    """Numbers that all kernels are started with."""

    def __init__(self, query: Tensor, row_scores: Tensor, column_scores: Tensor) -> None:
        batch, latents, channels = query.shape
        rows, columns = row_scores.shape[-1], column_scores.shape[-1]
        self.counts = (latents, rows, columns, channels)
        self.tiles = tiles(columns, channels)
        self.latent_programs = (triton.cdiv(latents, self.tiles["tile_latents"]), batch)
        self.row_programs = (rows, batch)


@triton.jit
def _load_rows(array, row, rows, width, tile_width: tl.constexpr):
    """(rows of the tile, tile_width) of an array (rows, width), zeros beyond it."""
    column = tl.arange(0, tile_width)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    return tl.load(array + row[:, None] * width + column[None, :], mask=inside, other=0.0)


@triton.jit
def _load_tokens(
    keys, rstd, row_scores, sample, row, latent, end, rows, columns, channels,
    tile_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Keys (tile_columns, tile_channels) and rstd (tile_columns,) of a row, and its scores (tile_latents,)."""
    first = (sample * rows + row) * columns
    column = tl.arange(0, tile_columns)
    key = _load_rows(keys, first + column, first + columns, channels, tile_channels)
    scale = tl.load(rstd + first + column, mask=column < columns, other=0.0)
    return key, scale, _load_column(row_scores, latent, end, rows, row)


@triton.jit
def _load_column(array, row, rows, width, column):
    """(rows of the tile,): one column of an array (rows, width)."""
    return tl.load(array + row * width + column, mask=row < rows, other=0.0)


@triton.jit
def _store_rows(array, values, row, rows, width, tile_width: tl.constexpr):
    column = tl.arange(0, tile_width)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    tl.store(array + row[:, None] * width + column[None, :], values, mask=inside)


@triton.jit
def _products(query, key, of_row, of_columns, scale):
    """(tile_latents, tile_columns): query . key + scale * (a term of the row + terms of the columns)."""
    products = tl.dot(query, tl.trans(key), input_precision="ieee", out_dtype=query.dtype)
    return products + (of_row[:, None] + of_columns) * scale[None, :]


@triton.jit
def _forward(
    query, keys, rstd, row_scores, column_scores, own_sum, normaliser, row_sums, column_sums,
    latents, rows, columns, channels,
    tile_latents: tl.constexpr, tile_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1)
    latent = sample * latents + tl.program_id(0) * tile_latents + tl.arange(0, tile_latents)
    end = (sample + 1) * latents
    column = tl.arange(0, tile_columns)
    inside = column < columns
    q = _load_rows(query, latent, end, channels, tile_channels)
    of_columns = _load_rows(column_scores, latent, end, columns, tile_columns)
    peak = tl.full((tile_latents,), float("-inf"), q.dtype)
    total = tl.zeros((tile_latents,), q.dtype)
    for row in range(rows):
        key, scale, of_row = _load_tokens(
            keys, rstd, row_scores, sample, row, latent, end, rows, columns, channels, tile_columns, tile_channels
        )  # fmt: skip
        scores = tl.where(inside[None, :], _products(q, key, of_row, of_columns, scale), float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
        peak = higher
    log_total = peak + tl.log(total)
    tl.store(normaliser + latent, log_total, mask=latent < end)
    own = tl.zeros((tile_latents, tile_channels), q.dtype)
    by_column = tl.zeros((tile_latents, tile_columns), q.dtype)
    for row in range(rows):
        key, scale, of_row = _load_tokens(
            keys, rstd, row_scores, sample, row, latent, end, rows, columns, channels, tile_columns, tile_channels
        )  # fmt: skip
        scores = _products(q, key, of_row, of_columns, scale)
        weights = tl.where(inside[None, :], tl.exp(scores - log_total[:, None]), 0.0)
        own += tl.dot(weights, key, input_precision="ieee", out_dtype=q.dtype)
        scaled = weights * scale[None, :]
        by_column += scaled
        tl.store(row_sums + latent * rows + row, tl.sum(scaled, 1), mask=latent < end)
    _store_rows(own_sum, own, latent, end, channels, tile_channels)
    _store_rows(column_sums, by_column, latent, end, columns, tile_columns)


@triton.jit
def _backward(
    query, keys, rstd, row_scores, column_scores, normaliser, shift, own_grad, row_grads, column_grads,
    query_grad, row_score_grads, column_score_grads,
    latents, rows, columns, channels,
    tile_latents: tl.constexpr, tile_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1)
    latent = sample * latents + tl.program_id(0) * tile_latents + tl.arange(0, tile_latents)
    end = (sample + 1) * latents
    column = tl.arange(0, tile_columns)
    inside = column < columns
    q = _load_rows(query, latent, end, channels, tile_channels)
    own_out = _load_rows(own_grad, latent, end, channels, tile_channels)
    of_columns = _load_rows(column_scores, latent, end, columns, tile_columns)
    columns_out = _load_rows(column_grads, latent, end, columns, tile_columns)
    log_total = tl.load(normaliser + latent, mask=latent < end, other=0.0)
    shifts = tl.load(shift + latent, mask=latent < end, other=0.0)
    of_query = tl.zeros((tile_latents, tile_channels), q.dtype)
    by_column = tl.zeros((tile_latents, tile_columns), q.dtype)
    for row in range(rows):
        key, scale, of_row = _load_tokens(
            keys, rstd, row_scores, sample, row, latent, end, rows, columns, channels, tile_columns, tile_channels
        )  # fmt: skip
        row_out = _load_column(row_grads, latent, end, rows, row)
        scores = _products(q, key, of_row, of_columns, scale)
        weights = tl.where(inside[None, :], tl.exp(scores - log_total[:, None]), 0.0)
        values = _products(own_out, key, row_out, columns_out, scale)
        score_grads = weights * (values - shifts[:, None])
        of_query += tl.dot(score_grads, key, input_precision="ieee", out_dtype=q.dtype)
        scaled = score_grads * scale[None, :]
        by_column += scaled
        tl.store(row_score_grads + latent * rows + row, tl.sum(scaled, 1), mask=latent < end)
    _store_rows(query_grad, of_query, latent, end, channels, tile_channels)
    _store_rows(column_score_grads, by_column, latent, end, columns, tile_columns)


@triton.jit
def _statistics(
    query, keys, rstd, row_scores, column_scores, normaliser, shift, own_grad, row_grads, column_grads,
    mean_sums, rstd_sums,
    latents, rows, columns, channels,
    tile_latents: tl.constexpr, tile_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    row, sample = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, tile_columns)
    inside = column < columns
    token = (sample * rows + row) * columns + column
    key = _load_rows(keys, token, (sample * rows + row) * columns + columns, channels, tile_channels)
    scale = tl.load(rstd + token, mask=inside, other=0.0)
    of_mean = tl.zeros((tile_columns,), key.dtype)
    of_rstd = tl.zeros((tile_columns,), key.dtype)
    end = (sample + 1) * latents
    for first in range(0, latents, tile_latents):
        latent = sample * latents + first + tl.arange(0, tile_latents)
        known = latent < end
        q = _load_rows(query, latent, end, channels, tile_channels)
        own_out = _load_rows(own_grad, latent, end, channels, tile_channels)
        of_columns = _load_rows(column_scores, latent, end, columns, tile_columns)
        columns_out = _load_rows(column_grads, latent, end, columns, tile_columns)
        log_total = tl.load(normaliser + latent, mask=known, other=0.0)
        shifts = tl.load(shift + latent, mask=known, other=0.0)
        of_row = tl.load(row_scores + latent * rows + row, mask=known, other=0.0)
        row_out = tl.load(row_grads + latent * rows + row, mask=known, other=0.0)
        last_of_query = tl.load(query + latent * channels + channels - 1, mask=known, other=0.0)
        last_of_own = tl.load(own_grad + latent * channels + channels - 1, mask=known, other=0.0)
        scores = _products(q, key, of_row, of_columns, scale)
        weights = tl.where(known[:, None] & inside[None, :], tl.exp(scores - log_total[:, None]), 0.0)
        values = _products(own_out, key, row_out, columns_out, scale)
        score_grads = weights * (values - shifts[:, None])
        of_mean += tl.sum(score_grads * last_of_query[:, None] + weights * last_of_own[:, None], 0)
        of_rstd += tl.sum(scores * score_grads + weights * values, 0)
    tl.store(mean_sums + token, of_mean, mask=inside)
    tl.store(rstd_sums + token, of_rstd, mask=inside)
