"""Triton kernels for the attention of separable.py: scores live in registers, nothing of size N * M is stored.

Shapes: B batch, N latents, R rows, W columns, M = R * W tokens, A feature channels. A grid of any number of axes is
treated as rows and columns: its last axis gives the columns, all others together the rows. With scaled features
k = rstd * u, row scores a and column scores b, the score of latent n and token (y, x) is

    s(n, y, x) = q(n) . k(y, x)  +  rstd(y, x) * (a(n, y) + b(n, x)).

Forward: a program holds a few latents of one sample and loops over the rows of the grid, twice. The first pass computes
the log-sum-exp L of the scores, as FlashAttention does (arXiv 2205.14135). The second recomputes the scores and sums
with the final weights exp(s - L), so that no sum has to be rescaled. Sums of features and of columns stay in registers;
the sum of a row is complete and stored when the row is done. Backward: one pass like the second, with the weights
recomputed from L. Gradients of mean and rstd are sums over latents, so in `_statistics` a program holds one row and
loops over the latents: no atomics, hence deterministic.

Products are in full fp32: with so few channels they cost little, and an error of a score is a relative error of its
weight. On one H200 (ImageNet setting, commit b3af075) `_forward` took 0.55 ms and `_backward` 0.34 ms per cross-attend
and image, mostly waiting for reductions across warps at the end of each row. fp32 gradients differed from fp64 by 6e-5
to 8e-5, those of plain tiles by 1e-6: long sums over rows lose digits. Tests compare the kernels with plain torch in
fp64 in Triton's interpreter. `fits` decides which grids and patches they support.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Register budget of a program, for compute capability 9.0: 8 warps are 256 threads, with up to 255 registers each.
_WARPS = 8
"""Warps of a program. With 4 warps and 32 latents, 1 to 17 kB were spilled (docs/experiments.md)."""
_SCORES = 4096
"""Scores of a row that a program holds: 16 registers per thread in each of the half dozen arrays of this size. 16
latents by 256 columns spill at most 200 bytes. 32 by 256 were faster on an H200 (0.36 and 0.27 ms); not adopted yet."""
_MAX_COLUMNS = 256
"""Columns of a row, which is held whole: 256 by the minimum of 16 latents are `_SCORES`. ImageNet takes 224."""
_MAX_CHANNELS = 64
"""Feature channels A: the keys of a row, 256 by 64, are then 64 registers per thread, a quarter of all."""
_MIN_TILE = 16
"""`tl.dot` requires at least 16 along each side of its operands."""


def fits(columns: int, channels: int) -> bool:
    """Return whether a row of the grid and its features fit in a program's registers.

    Args:
        columns: Size of the grid's last axis.
        channels: Feature channels A.
    """
    return columns <= _MAX_COLUMNS and channels <= _MAX_CHANNELS


def forward(
    query: Tensor, keys: Tensor, rstd: Tensor, row_scores: Tensor, column_scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sums over the grid with the softmax of the scores as weights w.

    Args:
        query: (B, N, A), fp32 or fp64, like all other arguments.
        keys: (B, R * W, A), the features times rstd.
        rstd: (B, R * W).
        row_scores: (B, N, R).
        column_scores: (B, N, W).

    Returns:
        The sum of w * keys, (B, N, A); the log-sum-exp of the scores, (B, N); the sums of w * rstd of each row,
        (B, N, R), and of each column, (B, N, W).
    """
    feature_sum, normaliser = torch.empty_like(query), torch.empty_like(query[..., 0])
    row_sums, column_sums = torch.empty_like(row_scores), torch.empty_like(column_scores)
    sizes = _Sizes(query, row_scores, column_scores)
    _forward[sizes.latent_programs](
        *(array.contiguous() for array in (query, keys, rstd, row_scores, column_scores)),
        feature_sum, normaliser, row_sums, column_sums, *sizes.counts, **sizes.tiles,
    )  # fmt: skip
    return feature_sum, normaliser, row_sums, column_sums


def backward(
    query: Tensor, keys: Tensor, rstd: Tensor, row_scores: Tensor, column_scores: Tensor,
    normaliser: Tensor, shift: Tensor, feature_grad: Tensor, row_grads: Tensor, column_grads: Tensor,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the gradients of `forward`'s arguments, except those of the keys.

    Args:
        query: As for `forward`.
        keys: As for `forward`.
        rstd: As for `forward`.
        row_scores: As for `forward`.
        column_scores: As for `forward`.
        normaliser: (B, N), from `forward`.
        shift: (B, N), dO . O - dL, which is subtracted from dP (factored.py).
        feature_grad: (B, N, A), gradient of the sum of features.
        row_grads: (B, N, R), gradient of the sums of rows.
        column_grads: (B, N, W), gradient of the sums of columns.
        statistics: Whether gradients of the tokens' mean and rstd are needed.

    Returns:
        Gradients of query, row scores and column scores. Then two sums over latents, each (B, R * W) or None, that give
        the gradients of mean and rstd: of dS * q_A + w * dO_A, where q_A is the last channel, and of s * dS + w * dP.
    """
    arrays = (
        query,
        keys,
        rstd,
        row_scores,
        column_scores,
        normaliser,
        shift,
        feature_grad,
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
    """Return the sizes that the kernels are compiled for; `num_stages` is left at Triton's default, not tuned.

    Args:
        columns: Size of the grid's last axis.
        channels: Feature channels A.
    """
    # Triton's arrays have sizes that are powers of 2.
    tile_columns, tile_channels = (
        max(_MIN_TILE, triton.next_power_of_2(size)) for size in (columns, channels)
    )
    # Arrays of latents by channels get a quarter of the registers of an array of scores. For everything that `fits`
    # this gives 16 to 64 latents.
    tile_latents = max(_MIN_TILE, _SCORES // max(tile_columns, 4 * tile_channels))
    return {
        "tile_latents": tile_latents,
        "tile_columns": tile_columns,
        "tile_channels": tile_channels,
        "num_warps": _WARPS,
    }


class _Sizes:
    """Sizes of arrays and tiles, and grids of programs, for launching the kernels."""

    def __init__(self, query: Tensor, row_scores: Tensor, column_scores: Tensor) -> None:
        batch, latents, channels = query.shape
        rows, columns = row_scores.shape[-1], column_scores.shape[-1]
        self.counts = (latents, rows, columns, channels)
        self.tiles = tiles(columns, channels)
        self.latent_programs = (triton.cdiv(latents, self.tiles["tile_latents"]), batch)
        self.row_programs = (rows, batch)


@triton.jit
def _load_rows(array, row, rows, width, tile_width: tl.constexpr):
    """Load (rows of the tile, tile_width) of an array (rows, width), zeros outside it."""
    column = tl.arange(0, tile_width)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    return tl.load(array + row[:, None] * width + column[None, :], mask=inside, other=0.0)


@triton.jit
def _load_tokens(
    keys, rstd, row_scores, sample, row, latent, end, rows, columns, channels,
    tile_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Load keys (tile_columns, tile_channels) and rstd (tile_columns,) of a row, and its scores (tile_latents,)."""
    first = (sample * rows + row) * columns
    column = tl.arange(0, tile_columns)
    key = _load_rows(keys, first + column, first + columns, channels, tile_channels)
    scale = tl.load(rstd + first + column, mask=column < columns, other=0.0)
    return key, scale, _load_column(row_scores, latent, end, rows, row)


@triton.jit
def _load_column(array, row, rows, width, column):
    """Load one column of an array (rows, width): (rows of the tile,)."""
    return tl.load(array + row * width + column, mask=row < rows, other=0.0)


@triton.jit
def _store_rows(array, values, row, rows, width, tile_width: tl.constexpr):
    """Store (rows of the tile, tile_width) into an array (rows, width), nothing outside it."""
    column = tl.arange(0, tile_width)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    tl.store(array + row[:, None] * width + column[None, :], values, mask=inside)


@triton.jit
def _products(query, key, row_term, column_terms, scale):
    """Return query . key + scale * (term of the row + terms of the columns), (tile_latents, tile_columns)."""
    products = tl.dot(query, tl.trans(key), input_precision="ieee", out_dtype=query.dtype)
    return products + (row_term[:, None] + column_terms) * scale[None, :]


@triton.jit
def _forward(
    query, keys, rstd, row_scores, column_scores, feature_sum, normaliser, row_sums, column_sums,
    latents, rows, columns, channels,
    tile_latents: tl.constexpr, tile_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Compute sums and log-sum-exp of a tile of latents of one sample."""
    sample = tl.program_id(1)
    # Latents beyond the sample's end load zeros and store nothing.
    latent = sample * latents + tl.program_id(0) * tile_latents + tl.arange(0, tile_latents)
    end = (sample + 1) * latents
    column = tl.arange(0, tile_columns)
    inside = column < columns
    q = _load_rows(query, latent, end, channels, tile_channels)
    column_terms = _load_rows(column_scores, latent, end, columns, tile_columns)
    # First pass: log-sum-exp, with a running maximum so that no exponential overflows.
    peak = tl.full((tile_latents,), float("-inf"), q.dtype)
    total = tl.zeros((tile_latents,), q.dtype)
    for row in range(rows):
        key, scale, row_term = _load_tokens(
            keys, rstd, row_scores, sample, row, latent, end, rows, columns, channels, tile_columns, tile_channels
        )  # fmt: skip
        scores = tl.where(inside[None, :], _products(q, key, row_term, column_terms, scale), float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(scores - new_peak[:, None]), 1)
        peak = new_peak
    log_total = peak + tl.log(total)
    tl.store(normaliser + latent, log_total, mask=latent < end)
    # Second pass: sums with the final weights.
    by_channel = tl.zeros((tile_latents, tile_channels), q.dtype)
    by_column = tl.zeros((tile_latents, tile_columns), q.dtype)
    for row in range(rows):
        key, scale, row_term = _load_tokens(
            keys, rstd, row_scores, sample, row, latent, end, rows, columns, channels, tile_columns, tile_channels
        )  # fmt: skip
        scores = _products(q, key, row_term, column_terms, scale)
        weights = tl.where(inside[None, :], tl.exp(scores - log_total[:, None]), 0.0)
        by_channel += tl.dot(weights, key, input_precision="ieee", out_dtype=q.dtype)
        scaled = weights * scale[None, :]
        by_column += scaled
        tl.store(row_sums + latent * rows + row, tl.sum(scaled, 1), mask=latent < end)
    _store_rows(feature_sum, by_channel, latent, end, channels, tile_channels)
    _store_rows(column_sums, by_column, latent, end, columns, tile_columns)


@triton.jit
def _backward(
    query, keys, rstd, row_scores, column_scores, normaliser, shift, feature_grad, row_grads, column_grads,
    query_grad, row_score_grads, column_score_grads,
    latents, rows, columns, channels,
    tile_latents: tl.constexpr, tile_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of query, row scores and column scores of a tile of latents; `*_out` are parts of dO."""
    sample = tl.program_id(1)
    latent = sample * latents + tl.program_id(0) * tile_latents + tl.arange(0, tile_latents)
    end = (sample + 1) * latents
    column = tl.arange(0, tile_columns)
    inside = column < columns
    q = _load_rows(query, latent, end, channels, tile_channels)
    feature_out = _load_rows(feature_grad, latent, end, channels, tile_channels)
    column_terms = _load_rows(column_scores, latent, end, columns, tile_columns)
    column_out = _load_rows(column_grads, latent, end, columns, tile_columns)
    log_total = tl.load(normaliser + latent, mask=latent < end, other=0.0)
    shifts = tl.load(shift + latent, mask=latent < end, other=0.0)
    query_sum = tl.zeros((tile_latents, tile_channels), q.dtype)
    by_column = tl.zeros((tile_latents, tile_columns), q.dtype)
    for row in range(rows):
        key, scale, row_term = _load_tokens(
            keys, rstd, row_scores, sample, row, latent, end, rows, columns, channels, tile_columns, tile_channels
        )  # fmt: skip
        row_out = _load_column(row_grads, latent, end, rows, row)
        scores = _products(q, key, row_term, column_terms, scale)
        weights = tl.where(inside[None, :], tl.exp(scores - log_total[:, None]), 0.0)
        values = _products(feature_out, key, row_out, column_out, scale)
        score_grads = weights * (values - shifts[:, None])
        query_sum += tl.dot(score_grads, key, input_precision="ieee", out_dtype=q.dtype)
        scaled = score_grads * scale[None, :]
        by_column += scaled
        tl.store(row_score_grads + latent * rows + row, tl.sum(scaled, 1), mask=latent < end)
    _store_rows(query_grad, query_sum, latent, end, channels, tile_channels)
    _store_rows(column_score_grads, by_column, latent, end, columns, tile_columns)


@triton.jit
def _statistics(
    query, keys, rstd, row_scores, column_scores, normaliser, shift, feature_grad, row_grads, column_grads,
    mean_sums, rstd_sums,
    latents, rows, columns, channels,
    tile_latents: tl.constexpr, tile_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Sum what the gradients of mean and rstd need over all latents, for one row of one sample."""
    row, sample = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, tile_columns)
    inside = column < columns
    token = (sample * rows + row) * columns + column
    key = _load_rows(keys, token, (sample * rows + row) * columns + columns, channels, tile_channels)
    scale = tl.load(rstd + token, mask=inside, other=0.0)
    mean_sum = tl.zeros((tile_columns,), key.dtype)
    rstd_sum = tl.zeros((tile_columns,), key.dtype)
    end = (sample + 1) * latents
    for first in range(0, latents, tile_latents):
        latent = sample * latents + first + tl.arange(0, tile_latents)
        valid = latent < end
        q = _load_rows(query, latent, end, channels, tile_channels)
        feature_out = _load_rows(feature_grad, latent, end, channels, tile_channels)
        column_terms = _load_rows(column_scores, latent, end, columns, tile_columns)
        column_out = _load_rows(column_grads, latent, end, columns, tile_columns)
        log_total = tl.load(normaliser + latent, mask=valid, other=0.0)
        shifts = tl.load(shift + latent, mask=valid, other=0.0)
        row_term = tl.load(row_scores + latent * rows + row, mask=valid, other=0.0)
        row_out = tl.load(row_grads + latent * rows + row, mask=valid, other=0.0)
        last_of_query = tl.load(query + latent * channels + channels - 1, mask=valid, other=0.0)
        last_of_out = tl.load(feature_grad + latent * channels + channels - 1, mask=valid, other=0.0)
        scores = _products(q, key, row_term, column_terms, scale)
        # Unlike above, latents beyond the end must count for nothing here, since this sums over latents.
        weights = tl.where(valid[:, None] & inside[None, :], tl.exp(scores - log_total[:, None]), 0.0)
        values = _products(feature_out, key, row_out, column_out, scale)
        score_grads = weights * (values - shifts[:, None])
        mean_sum += tl.sum(score_grads * last_of_query[:, None] + weights * last_of_out[:, None], 0)
        rstd_sum += tl.sum(scores * score_grads + weights * values, 0)
    tl.store(mean_sums + token, mean_sum, mask=inside)
    tl.store(rstd_sums + token, rstd_sum, mask=inside)
