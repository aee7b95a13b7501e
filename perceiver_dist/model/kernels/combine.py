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
        channel = tl.arange(0, tail_width)
        total = tl.zeros((LATENTS, tail_width), number)
        for place in range(count):
            part = load_matrix(
                own_sums + place * latents * tail_width, latent, live, channel, channel < own, tail_width
            )
            total += (
                part * _factor(shifts + place * latents, peak, weight_sum, latent, live, weighted)[:, None]
            )
        store_matrix(feature_sum + lead_channels, total, latent, live, channel, channel < own, channels)
    elif task <= lead_blocks:
        lead_sums += sample * count * latents * lead_width
        channel = (task - 1) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < lead_channels
        total = tl.zeros((LATENTS, BLOCK), number)
        for place in range(count):
            part = load_matrix(
                lead_sums + place * latents * lead_width, latent, live, channel, inside, lead_width
            )
            total += (
                part * _factor(shifts + place * latents, peak, weight_sum, latent, live, weighted)[:, None]
            )
        store_matrix(feature_sum, total, latent, live, channel, inside, channels)
    elif task < first_of_columns:
        row = (task - 1 - lead_blocks) * BLOCK + tl.arange(0, BLOCK)
        inside = row < rows
        total = tl.zeros((LATENTS, BLOCK), number)
        for tile in range(tiles):
            array = row_sums + (sample * tiles + tile) * latents * rows
            part = load_matrix(array, latent, live, row, inside, rows)
            if weighted:
                place = row // rows_per_piece * tiles + tile
                shift = load_matrix(shifts, place, inside, latent, live, latents)
                part *= tl.exp2(tl.trans(shift) - peak[:, None]) / weight_sum[:, None]
            total += part
        store_matrix(total_by_row + sample * latents * rows, total, latent, live, row, inside, rows)
    else:
        tile = task - first_of_columns
        column = tile * tile_columns + tl.arange(0, tile_columns)
        inside = column < columns
        total = tl.zeros((LATENTS, tile_columns), number)
        for piece in range(pieces):
            array = column_sums + (sample * pieces + piece) * latents * columns
            part = load_matrix(array, latent, live, column, inside, columns)
            place = piece * tiles + tile
            total += (
                part * _factor(shifts + place * latents, peak, weight_sum, latent, live, weighted)[:, None]
            )
        store_matrix(
            total_by_column + sample * latents * columns, total, latent, live, column, inside, columns
        )


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
