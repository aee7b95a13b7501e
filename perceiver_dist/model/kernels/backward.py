"""Gradients of forward.py's sums, but those of the tokens, for one tile of latents by columns that walks over rows.

With weights p = exp(s - L) recomputed from the scores, dP_j = dO . xhat_j and dS = p * (dP - D) as in factored.py, the
sums over the grid have the form of the forward pass, with dS for weights. dP - D is a second product like that of the
scores, and of the same tokens: [last features of dO | -D | 0 ... | gradients of the sums of the rows 8i to 8i+7].
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


@triton.jit
def attend_backward(
    query, lead_query, row_scores, column_scores, normaliser,
    feature_grad, lead_grad, row_grads, column_grads, shift,
    tail, lead, scale, own_sums, lead_sums, row_sums, column_sums,
    latents, rows, columns, channels, lead_channels, tiles, pieces, rows_per_piece,
    tile_columns: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr, lead_chunk: tl.constexpr,
    parts: tl.constexpr, lead_parts: tl.constexpr, tile_latents: tl.constexpr,
):  # fmt: skip
    """Sum dS of a tile of latents by columns over a piece of the rows.

    Programs and results as in `forward.attend`, without shifts: own_sums and lead_sums are for the gradient of the
    query, row_sums and column_sums for those of row_scores and column_scores.
    """
    chunks: tl.constexpr = (lead_width + lead_chunk - 1) // lead_chunk if lead_width > 0 else 1
    sample, tile, piece, chunk, latent = locate(latents, tiles, tile_latents, chunks)
    query, lead_query, row_scores, column_scores = queries_of(
        sample, query, lead_query, row_scores, column_scores, latents, rows, columns, channels, lead_width, lead_parts
    )  # fmt: skip
    feature_grad, lead_grad, row_grads, column_grads = queries_of(
        sample, feature_grad, lead_grad, row_grads, column_grads, latents, rows, columns, channels,
        lead_width, lead_parts,
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
    column_terms = load_matrix(column_scores, latent, live, column, inside, columns) * LOG2_E
    column_terms = tl.where(inside[None, :], column_terms, float("-inf"))
    column_outs = load_matrix(column_grads, latent, live, column, inside, columns)
    log_total = tl.load(normaliser + sample * latents + latent, mask=live, other=0.0) * LOG2_E
    subtracted = tl.load(shift + sample * latents + latent, mask=live, other=0.0)
    is_one = (channel == channels - lead_channels)[None, :]
    last = load_last(query, latent, live, channels, lead_channels, tail_width) * LOG2_E
    last_grad = load_last(feature_grad, latent, live, channels, lead_channels, tail_width)
    by_column, by_channel, by_lead = _sum_rows(
        tl.where(is_one, -log_total[:, None], last), column_terms, lead_query, row_scores,
        tl.where(is_one, -subtracted[:, None], last_grad), column_outs, lead_grad, row_grads,
        tail, lead, scale, row_sums + (sample * tiles + tile) * latents * rows, chunk, latent, live,
        begin, tl.minimum(begin + rows_per_piece, rows), rows,
        tile_columns, tail_width, lead_width, lead_chunk, parts, lead_parts,
    )  # fmt: skip
    if chunk == 0:
        everywhere = channel < tail_width
        store_matrix(own_sums + place * tail_width, by_channel, latent, live, channel, everywhere, tail_width)
        column_sums += (sample * pieces + piece) * latents * columns
        store_matrix(column_sums, by_column, latent, live, column, inside, columns)
    if lead_width > 0:
        store_chunk(lead_sums + place * lead_width, by_lead, latent, live, chunk, lead_width, lead_chunk)


@triton.jit
def _sum_rows(
    last, column_terms, lead_query, row_scores, last_grad, column_outs, lead_grad, row_grads,
    tail, lead, scale, row_sums, chunk, latent, live, begin, end, rows,
    tile_columns: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr, lead_chunk: tl.constexpr,
    parts: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Return sums of dS by column, by channel of the tail and of the chunk of the lead, and store those by row."""
    element: tl.constexpr = tail.dtype.element_ty
    nothing = tl.zeros_like(column_terms)
    by_column = tl.zeros_like(column_terms)
    by_channel = tl.zeros_like(last)
    by_lead = tl.zeros((last.shape[0], lead_chunk), last.dtype)
    for first in range(begin, end, SLOTS):
        by_slot = load_slots(row_scores, latent, live, first, rows, tail_width) * LOG2_E
        q0, q1, q2 = split(last + by_slot, element, parts)
        by_slot = load_slots(row_grads, latent, live, first, rows, tail_width)
        g0, g1, g2 = split(last_grad + by_slot, element, parts)
        sums = tl.zeros_like(last)
        for row in range(first, tl.minimum(first + SLOTS, end)):
            t0, t1, t2 = load_tail(tail, row, tile_columns, tail_width, parts)
            by = tl.load(scale + row * tile_columns + tl.arange(0, tile_columns))
            scores = products(
                q0, q1, q2, t0, t1, t2, lead_query, lead, row, latent, live, nothing,
                tile_columns, lead_width, parts, lead_parts,
            )  # fmt: skip
            values = products(
                g0, g1, g2, t0, t1, t2, lead_grad, lead, row, latent, live, nothing,
                tile_columns, lead_width, parts, lead_parts,
            )  # fmt: skip
            weights = tl.exp2(column_terms * by[None, :] + scores)
            score_grads = weights * (column_outs * by[None, :] + values)
            by_column += score_grads * by[None, :]
            w0, w1, w2 = split(score_grads, element, parts)
            sums = weighted_sum(w0, w1, w2, t0, t1, t2, sums, parts)
            if lead_width > 0:
                by_lead = weighted_lead_sum(
                    w0, w1, w2, lead, row, chunk, by_lead, tile_columns, lead_width, lead_chunk, lead_parts
                )  # fmt: skip
        by_channel += sums
        if chunk == 0:
            store_slots(row_sums, sums, latent, live, first, end, rows, tail_width)
    return by_column, by_channel, by_lead
