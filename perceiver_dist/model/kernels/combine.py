"""Sums over the tiles and pieces of a grid: the second level of the kernels' sums, in a fixed order, no atomics."""

import triton
import triton.language as tl

from perceiver_dist.model.kernels.tokens import LEAD_BLOCK, LOG2_E, load_matrix, store_matrix

LATENTS = tl.constexpr(16)
"""Latents of a program; with blocks of 64 channels, rows or columns this gives thousands of programs per batch."""
BLOCK = LEAD_BLOCK


@triton.jit
def combine(
    own_sums, lead_sums, row_sums, column_sums, shifts, feature_sum, normaliser, total_by_row, total_by_column,
    latents, rows, columns, channels, lead_channels, tiles, pieces, rows_per_piece,
    tile_columns: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr,
    places: tl.constexpr, weighted: tl.constexpr,
):  # fmt: skip
    """Add what forward.py (`weighted`) or backward.py wrote for S pieces of rows and T tiles of columns.

    With `weighted`, sums are multiplied by exp2(shift - L), where L is the log-sum-exp of the scores, to base 2.

    Programs: (latent tiles, 1 + lead_width / BLOCK + R / BLOCK + T, B). Reads own_sums (B, S, T, N, tail_width), whose
    channel after the features is the sum of weights, lead_sums (B, S, T, N, lead_width), row_sums (B, T, N, R),
    column_sums (B, S, N, W), and if `weighted` shifts (B, S, T, N). Writes feature_sum (B, N, A), if `weighted`
    normaliser (B, N) to base e, total_by_row (B, N, R) and total_by_column (B, N, W). `places` is S * T rounded up to
    a power of 2.
    """
    sample = tl.program_id(2).to(tl.int64)
    latent = tl.program_id(0) * LATENTS + tl.arange(0, LATENTS)
    live = latent < latents
    own = channels - lead_channels
    count = pieces * tiles
    shifts += sample * count * latents
    own_sums += sample * count * latents * tail_width
    feature_sum += sample * latents * channels
    number: tl.constexpr = feature_sum.dtype.element_ty
    peak, weight_sum = tl.zeros((LATENTS,), number), tl.full((LATENTS,), 1.0, number)
    if weighted:
        peak, weight_sum = _peak_and_total(
            own_sums + own, shifts, latent, live, latents, tail_width, count, places
        )
    lead_blocks: tl.constexpr = lead_width // BLOCK
    first_of_columns = 1 + lead_blocks + tl.cdiv(rows, BLOCK)
    task = tl.program_id(1)
    if task == 0:
        if weighted:
            tl.store(normaliser + sample * latents + latent, (peak + tl.log2(weight_sum)) / LOG2_E, mask=live)
        _combine_channels(
            own_sums, shifts, feature_sum + lead_channels, peak, weight_sum, latent, live, tl.arange(0, tail_width),
            own, channels, latents, count, tail_width, weighted,
        )  # fmt: skip
    elif task <= lead_blocks:
        _combine_channels(
            lead_sums + sample * count * latents * lead_width, shifts, feature_sum, peak, weight_sum, latent, live,
            (task - 1) * BLOCK + tl.arange(0, BLOCK), lead_channels, channels, latents, count, lead_width, weighted,
        )  # fmt: skip
    elif task < first_of_columns:
        _combine_rows(
            row_sums + sample * tiles * latents * rows, shifts, total_by_row + sample * latents * rows,
            peak, weight_sum, latent, live, (task - 1 - lead_blocks) * BLOCK + tl.arange(0, BLOCK),
            rows, latents, tiles, rows_per_piece, weighted,
        )  # fmt: skip
    else:
        _combine_columns(
            column_sums + sample * pieces * latents * columns, shifts, total_by_column + sample * latents * columns,
            peak, weight_sum, latent, live, task - first_of_columns, tl.arange(0, tile_columns),
            columns, latents, tiles, pieces, tile_columns, weighted,
        )  # fmt: skip


@triton.jit
def _combine_channels(
    sums, shifts, result, peak, total, latent, live, channel, of_result, channels, latents, count,
    width: tl.constexpr, weighted: tl.constexpr,
):  # fmt: skip
    """Add sums (S * T, N, width) over all places, of which the first `of_result` channels go to result (N, A)."""
    inside = channel < of_result
    added = tl.zeros((LATENTS, channel.shape[0]), peak.dtype)
    for place in range(count):
        part = load_matrix(sums + place * latents * width, latent, live, channel, inside, width)
        added += part * _factor(shifts + place * latents, peak, total, latent, live, weighted)[:, None]
    store_matrix(result, added, latent, live, channel, inside, channels)


@triton.jit
def _combine_rows(
    sums, shifts, result, peak, total, latent, live, row, rows, latents, tiles, rows_per_piece,
    weighted: tl.constexpr,
):  # fmt: skip
    """Add sums (T, N, R) over all tiles, for some rows of result (N, R)."""
    inside = row < rows
    added = tl.zeros((LATENTS, row.shape[0]), peak.dtype)
    for tile in range(tiles):
        part = load_matrix(sums + tile * latents * rows, latent, live, row, inside, rows)
        if weighted:
            place = row // rows_per_piece * tiles + tile
            shift = tl.trans(load_matrix(shifts, place, inside, latent, live, latents))
            part *= tl.exp2(shift - peak[:, None]) / total[:, None]
        added += part
    store_matrix(result, added, latent, live, row, inside, rows)


@triton.jit
def _combine_columns(
    sums, shifts, result, peak, total, latent, live, tile, index, columns, latents, tiles, pieces,
    tile_columns: tl.constexpr, weighted: tl.constexpr,
):  # fmt: skip
    """Add sums (S, N, W) over all pieces, for one tile of result (N, W)."""
    column = tile * tile_columns + index
    inside = column < columns
    added = tl.zeros((LATENTS, tile_columns), peak.dtype)
    for piece in range(pieces):
        part = load_matrix(sums + piece * latents * columns, latent, live, column, inside, columns)
        place = piece * tiles + tile
        added += part * _factor(shifts + place * latents, peak, total, latent, live, weighted)[:, None]
    store_matrix(result, added, latent, live, column, inside, columns)


@triton.jit
def _peak_and_total(weight_sums, shifts, latent, live, latents, stride, count, places: tl.constexpr):
    """Return the largest shift c, and the sum of exp2(score - c) over all scores: the log-sum-exp is c + log2(sum)."""
    place = tl.arange(0, places)
    inside = live[:, None] & (place < count)[None, :]
    offsets = place[None, :] * latents + latent[:, None]
    shift = tl.load(shifts + offsets, mask=inside, other=float("-inf"))
    total = tl.load(weight_sums + offsets * stride, mask=inside, other=0.0)
    peak = tl.where(live, tl.max(shift, 1), 0.0)
    return peak, tl.where(live, tl.sum(total * tl.exp2(shift - peak[:, None]), 1), 1.0)


@triton.jit
def _factor(shifts, peak, total, latent, live, weighted: tl.constexpr):
    """Return exp2(shift - L), or 1: (LATENTS,)."""
    if weighted:
        return tl.exp2(tl.load(shifts + latent, mask=live, other=0.0) - peak) / total
    return total
