"""Softmax and weighted sums over a grid: the kernel for one tile of latents by columns, which walks over rows.

Three things make its loop short:

1. Nothing is done by row: the scores and the sums of rows are channels of the matrix products (tokens.py). Per score
   are left one product with rstd, the exponential, its rounding to bfloat16 and the addition to the sum of its column.
2. No running maximum. Any shift c gives the same softmax, as long as no exponential overflows and the largest does
   not underflow. c is the maximum over every 16th row. The largest score is no smaller, so its exp2(s - c) is at least
   1. If a sum of weights exceeds 2**100, the program repeats with the maximum over all rows, after which it cannot.
3. exp2 instead of exp, with log2(e) in the queries.

Tiles differ in c; combine.py adds their sums times exp2(c - L), with the log-sum-exp L of all scores.
"""

import triton
import triton.language as tl

from perceiver_dist.model.kernels.tokens import (
    LOG2_E,
    SLOTS,
    load_last,
    load_matrix,
    load_slots,
    load_tail,
    locate,
    products,
    queries_of,
    split,
    store_chunk,
    store_matrix,
    store_slots,
    tokens_of,
    weighted_lead_sum,
    weighted_sum,
)

_SAMPLED_ROWS = tl.constexpr(16)
"""Every 16th row is looked at for the shift: a sixteenth of the cost of a true maximum."""
_LARGEST_SUM = tl.constexpr(2.0**100)
"""Sums of weights times features still fit into fp32, and a tile that weighs 2**-100 of another is negligible."""


@triton.jit
def attend(
    query, lead_query, row_scores, column_scores, tail, lead, scale,
    own_sums, lead_sums, row_sums, column_sums, shifts,
    latents, rows, columns, channels, lead_channels, tiles, pieces, rows_per_piece,
    tile_columns: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr, lead_chunk: tl.constexpr,
    parts: tl.constexpr, lead_parts: tl.constexpr, tile_latents: tl.constexpr,
):  # fmt: skip
    """Sum the weights exp2(score - shift) of a tile of latents by columns over a piece of the rows.

    Programs as in `locate`. Each chunk of the lead is summed by a program of its own; the first writes the rest.
    """
    chunks: tl.constexpr = (lead_width + lead_chunk - 1) // lead_chunk if lead_width > 0 else 1
    sample, tile, piece, chunk, latent = locate(latents, tiles, tile_latents, chunks)
    query, lead_query, row_scores, column_scores = queries_of(
        sample, query, lead_query, row_scores, column_scores, latents, rows, columns, channels, lead_width, lead_parts
    )  # fmt: skip
    tail, lead, scale = tokens_of(
        sample, tile, tail, lead, scale, rows, tiles, tile_columns, tail_width, lead_width, parts, lead_parts
    )  # fmt: skip
    place = ((sample * pieces + piece) * tiles + tile) * latents
    live = latent < latents
    column = tile * tile_columns + tl.arange(0, tile_columns)
    inside = column < columns
    channel = tl.arange(0, tail_width)
    begin = piece * rows_per_piece
    end = tl.minimum(begin + rows_per_piece, rows)
    # -inf beyond the grid makes weights 0 there, at no cost per score.
    column_terms = load_matrix(column_scores, latent, live, column, inside, columns) * LOG2_E
    column_terms = tl.where(inside[None, :], column_terms, float("-inf"))
    last = load_last(query, latent, live, channels, lead_channels, tail_width) * LOG2_E
    is_one = (channel == channels - lead_channels)[None, :]
    step = _SAMPLED_ROWS
    while step > 0:
        shift = _largest(
            last, column_terms, lead_query, row_scores, tail, lead, scale, latent, live, begin, end, step, rows,
            tile_columns, tail_width, lead_width, parts, lead_parts,
        )  # fmt: skip
        by_column, by_channel, by_lead = _sum_rows(
            tl.where(is_one, -shift[:, None], last), column_terms, lead_query, row_scores, tail, lead, scale,
            row_sums + (sample * tiles + tile) * latents * rows, chunk, latent, live, begin, end, rows,
            tile_columns, tail_width, lead_width, lead_chunk, parts, lead_parts,
        )  # fmt: skip
        if chunk == 0:
            tl.store(shifts + place + latent, shift, mask=live)
            everywhere = channel < tail_width
            store_matrix(
                own_sums + place * tail_width, by_channel, latent, live, channel, everywhere, tail_width
            )
            first = (sample * pieces + piece) * latents * columns
            store_matrix(column_sums + first, by_column, latent, live, column, inside, columns)
        if lead_width > 0:
            store_chunk(lead_sums + place * lead_width, by_lead, latent, live, chunk, lead_width, lead_chunk)
        # True of NaN as well, which an overflow can become.
        too_large = is_one & ~(by_channel <= _LARGEST_SUM)
        repeat = tl.max(tl.max(too_large.to(tl.int32), 1), 0)
        step = tl.where(step > 1, repeat, 0)


@triton.jit
def _largest(
    last, column_terms, lead_query, row_scores, tail, lead, scale, latent, live, begin, end, step, rows,
    tile_columns: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr,
    parts: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Return the largest scores in every row of this step, (tile_latents,), rounded to a sum of parts."""
    element: tl.constexpr = tail.dtype.element_ty
    nothing = tl.zeros_like(column_terms)
    peaks = nothing + float("-inf")
    for row in range(begin, end, step):
        by_slot = load_slots(row_scores, latent, live, row, rows, tail_width) * LOG2_E
        q0, q1, q2 = split(last + by_slot, element, parts)
        t0, t1, t2 = load_tail(tail, row, tile_columns, tail_width, parts)
        by = tl.load(scale + row * tile_columns + tl.arange(0, tile_columns))
        scores = products(
            q0, q1, q2, t0, t1, t2, lead_query, lead, row, latent, live, nothing,
            tile_columns, lead_width, parts, lead_parts,
        )  # fmt: skip
        peaks = tl.maximum(peaks, column_terms * by[None, :] + scores)
    # A shift goes through a product.
    s0, s1, s2 = split(tl.max(peaks, 1), element, parts)
    shift = s0.to(peaks.dtype)
    if parts > 1:
        shift += s1.to(peaks.dtype)
    if parts > 2:
        shift += s2.to(peaks.dtype)
    return shift


@triton.jit
def _sum_rows(
    shifted, column_terms, lead_query, row_scores, tail, lead, scale, row_sums, chunk, latent, live, begin, end, rows,
    tile_columns: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr, lead_chunk: tl.constexpr,
    parts: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Return sums by column, by channel of the tail and of the chunk of the lead, and store those by row."""
    element: tl.constexpr = tail.dtype.element_ty
    nothing = tl.zeros_like(column_terms)
    by_column = tl.zeros_like(column_terms)
    by_channel = tl.zeros_like(shifted)
    by_lead = tl.zeros((shifted.shape[0], lead_chunk), shifted.dtype)
    for first in range(begin, end, SLOTS):
        by_slot = load_slots(row_scores, latent, live, first, rows, tail_width) * LOG2_E
        q0, q1, q2 = split(shifted + by_slot, element, parts)
        sums = tl.zeros_like(shifted)
        for row in range(first, tl.minimum(first + SLOTS, end)):
            t0, t1, t2 = load_tail(tail, row, tile_columns, tail_width, parts)
            by = tl.load(scale + row * tile_columns + tl.arange(0, tile_columns))
            scores = products(
                q0, q1, q2, t0, t1, t2, lead_query, lead, row, latent, live, nothing,
                tile_columns, lead_width, parts, lead_parts,
            )  # fmt: skip
            weights = tl.exp2(column_terms * by[None, :] + scores)
            by_column += weights * by[None, :]
            w0, w1, w2 = split(weights, element, parts)
            sums = weighted_sum(w0, w1, w2, t0, t1, t2, sums, parts)
            if lead_width > 0:
                by_lead = weighted_lead_sum(
                    w0, w1, w2, lead, row, chunk, by_lead, tile_columns, lead_width, lead_chunk, lead_parts
                )  # fmt: skip
        by_channel += sums
        if chunk == 0:
            store_slots(row_sums, sums, latent, live, first, end, rows, tail_width)
    return by_column, by_channel, by_lead
