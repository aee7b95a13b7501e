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
    products,
    split,
    store_matrix,
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

    Programs: (latent tiles * chunks of lead * T * S, B), for T column tiles and S pieces. Writes own_sums
    (B, S, T, N, tail_width), lead_sums (B, S, T, N, lead_width), row_sums (B, T, N, R), column_sums (B, S, N, W) and
    shifts (B, S, T, N). Each chunk of lead is summed by a program of its own, the first of which writes the rest.
    """
    sample = tl.program_id(1).to(tl.int64)
    latent_tiles = tl.cdiv(latents, tile_latents)
    chunks: tl.constexpr = (lead_width + lead_chunk - 1) // lead_chunk if lead_width > 0 else 1
    chunk = tl.program_id(0) // latent_tiles % chunks
    place = tl.program_id(0) // latent_tiles // chunks
    tile = place % tiles
    piece = place // tiles
    place += sample * pieces * tiles
    own_sums += place * latents * tail_width
    lead_sums += place * latents * lead_width
    shifts += place * latents
    column_sums += (sample * pieces + piece) * latents * columns
    latent = tl.program_id(0) % latent_tiles * tile_latents + tl.arange(0, tile_latents)
    live = latent < latents
    index = tl.arange(0, tile_columns)
    column = tile * tile_columns + index
    inside = column < columns
    channel = tl.arange(0, tail_width)
    own = channels - lead_channels
    query += sample * latents * channels
    lead_query += sample * latents * lead_parts * lead_width
    row_scores += sample * latents * rows
    column_scores += sample * latents * columns
    token_row = (sample * tiles + tile) * rows * tile_columns
    tail += token_row * parts * tail_width
    lead += token_row * lead_parts * lead_width
    scale += token_row
    row_sums += (sample * tiles + tile) * latents * rows
    begin = piece * rows_per_piece
    end = tl.minimum(begin + rows_per_piece, rows)
    # -inf beyond the grid makes weights 0 there, at no cost per score.
    column_terms = load_matrix(column_scores, latent, live, column, inside, columns) * LOG2_E
    column_terms = tl.where(inside[None, :], column_terms, float("-inf"))
    last = load_last(query, latent, live, channels, lead_channels, tail_width) * LOG2_E
    number: tl.constexpr = column_terms.dtype
    nothing = tl.zeros((tile_latents, tile_columns), number)
    element: tl.constexpr = tail.dtype.element_ty
    step = _SAMPLED_ROWS
    while step > 0:
        peaks = tl.full((tile_latents, tile_columns), float("-inf"), number)
        for row in range(begin, end, step):
            by_slot = load_slots(row_scores, latent, live, row, rows, tail_width) * LOG2_E
            q0, q1, q2 = split(last + by_slot, element, parts)
            t0, t1, t2 = load_tail(tail, row, tile_columns, tail_width, parts)
            by = tl.load(scale + row * tile_columns + index)
            scores = products(
                q0, q1, q2, t0, t1, t2, lead_query, lead, row, latent, live, nothing,
                tile_columns, lead_width, parts, lead_parts,
            )  # fmt: skip
            peaks = tl.maximum(peaks, column_terms * by[None, :] + scores)
        # The shift goes through a product, so it has to be a sum of parts.
        s0, s1, s2 = split(tl.max(peaks, 1), element, parts)
        shift = s0.to(number)
        if parts > 1:
            shift += s1.to(number)
        if parts > 2:
            shift += s2.to(number)
        shifted = tl.where((channel == own)[None, :], -shift[:, None], last)
        by_column = tl.zeros((tile_latents, tile_columns), number)
        by_channel = tl.zeros((tile_latents, tail_width), number)
        by_lead = tl.zeros((tile_latents, lead_chunk), number)
        for first in range(begin, end, SLOTS):
            by_slot = load_slots(row_scores, latent, live, first, rows, tail_width) * LOG2_E
            q0, q1, q2 = split(shifted + by_slot, element, parts)
            sums = tl.zeros((tile_latents, tail_width), number)
            for row in range(first, tl.minimum(first + SLOTS, end)):
                t0, t1, t2 = load_tail(tail, row, tile_columns, tail_width, parts)
                by = tl.load(scale + row * tile_columns + index)
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
            row_of_slot = first + channel - (tail_width - SLOTS)
            in_slots = (row_of_slot >= first) & (row_of_slot < end)
            if chunk == 0:
                store_matrix(row_sums, sums, latent, live, row_of_slot, in_slots, rows)
        if chunk == 0:
            tl.store(shifts + latent, shift, mask=live)
            store_matrix(own_sums, by_channel, latent, live, channel, channel < tail_width, tail_width)
            store_matrix(column_sums, by_column, latent, live, column, inside, columns)
        if lead_width > 0:
            lead_channel = chunk * lead_chunk + tl.arange(0, lead_chunk)
            store_matrix(
                lead_sums, by_lead, latent, live, lead_channel, lead_channel < lead_width, lead_width
            )
        # True of NaN as well, which an overflow can become.
        too_large = (channel == own)[None, :] & ~(by_channel <= _LARGEST_SUM)
        repeat = tl.max(tl.max(too_large.to(tl.int32), 1), 0)
        step = tl.where(step > 1, repeat, 0)
