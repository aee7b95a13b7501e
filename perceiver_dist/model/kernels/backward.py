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
    products,
    split,
    store_matrix,
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

    Programs and results as in `forward.attend`, without shifts: own_sums (B, S, T, N, tail_width) and lead_sums
    (B, S, T, N, lead_width) are for the gradient of the query, row_sums (B, T, N, R) and column_sums (B, S, N, W) for
    those of row_scores and column_scores.
    """
    sample = tl.program_id(1).to(tl.int64)
    latent_tiles = tl.cdiv(latents, tile_latents)
    chunks: tl.constexpr = (lead_width + lead_chunk - 1) // lead_chunk if lead_width > 0 else 1
    chunk = tl.program_id(0) // latent_tiles % chunks
    place = tl.program_id(0) // latent_tiles // chunks
    tile = place % tiles
    piece = place // tiles
    place += sample * pieces * tiles
    latent = tl.program_id(0) % latent_tiles * tile_latents + tl.arange(0, tile_latents)
    live = latent < latents
    index = tl.arange(0, tile_columns)
    column = tile * tile_columns + index
    inside = column < columns
    channel = tl.arange(0, tail_width)
    query += sample * latents * channels
    feature_grad += sample * latents * channels
    lead_query += sample * latents * lead_parts * lead_width
    lead_grad += sample * latents * lead_parts * lead_width
    row_scores += sample * latents * rows
    row_grads += sample * latents * rows
    column_scores += sample * latents * columns
    column_grads += sample * latents * columns
    token_row = (sample * tiles + tile) * rows * tile_columns
    tail += token_row * parts * tail_width
    lead += token_row * lead_parts * lead_width
    scale += token_row
    row_sums += (sample * tiles + tile) * latents * rows
    begin = piece * rows_per_piece
    end = tl.minimum(begin + rows_per_piece, rows)
    column_terms = load_matrix(column_scores, latent, live, column, inside, columns) * LOG2_E
    column_terms = tl.where(inside[None, :], column_terms, float("-inf"))
    column_outs = load_matrix(column_grads, latent, live, column, inside, columns)
    log_total = tl.load(normaliser + sample * latents + latent, mask=live, other=0.0) * LOG2_E
    subtracted = tl.load(shift + sample * latents + latent, mask=live, other=0.0)
    one = (channel == channels - lead_channels)[None, :]
    last = load_last(query, latent, live, channels, lead_channels, tail_width) * LOG2_E
    last = tl.where(one, -log_total[:, None], last)
    last_grad = load_last(feature_grad, latent, live, channels, lead_channels, tail_width)
    last_grad = tl.where(one, -subtracted[:, None], last_grad)
    number: tl.constexpr = column_terms.dtype
    element: tl.constexpr = tail.dtype.element_ty
    nothing = tl.zeros((tile_latents, tile_columns), number)
    by_column = tl.zeros((tile_latents, tile_columns), number)
    by_channel = tl.zeros((tile_latents, tail_width), number)
    by_lead = tl.zeros((tile_latents, lead_chunk), number)
    for first in range(begin, end, SLOTS):
        by_slot = load_slots(row_scores, latent, live, first, rows, tail_width) * LOG2_E
        q0, q1, q2 = split(last + by_slot, element, parts)
        by_slot = load_slots(row_grads, latent, live, first, rows, tail_width)
        g0, g1, g2 = split(last_grad + by_slot, element, parts)
        sums = tl.zeros((tile_latents, tail_width), number)
        for row in range(first, tl.minimum(first + SLOTS, end)):
            t0, t1, t2 = load_tail(tail, row, tile_columns, tail_width, parts)
            by = tl.load(scale + row * tile_columns + index)
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
                )
        by_channel += sums
        row_of_slot = first + channel - (tail_width - SLOTS)
        in_slots = (row_of_slot >= first) & (row_of_slot < end)
        if chunk == 0:
            store_matrix(row_sums, sums, latent, live, row_of_slot, in_slots, rows)
    if chunk == 0:
        everywhere = channel < tail_width
        own_sums += place * latents * tail_width
        store_matrix(own_sums, by_channel, latent, live, channel, everywhere, tail_width)
        column_sums += (sample * pieces + piece) * latents * columns
        store_matrix(column_sums, by_column, latent, live, column, inside, columns)
    if lead_width > 0:
        lead_channel = chunk * lead_chunk + tl.arange(0, lead_chunk)
        lead_sums += place * latents * lead_width
        store_matrix(lead_sums, by_lead, latent, live, lead_channel, lead_channel < lead_width, lead_width)
