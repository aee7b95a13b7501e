"""Gradients of the tokens' mean and rstd: sums over latents, so a program holds tokens and walks over latents.

Up to factors of rstd (factored.py) they are, for each token, the sums over latents of

    dS * q_A + p * dO_A    and    s * dS + p * dP,

where q_A and dO_A are the last channels of the query and of dO, p, dS and dP as in backward.py, and s is the score.
"""

import triton
import triton.language as tl

from perceiver_dist.model.kernels.tokens import (
    LOG2_E,
    load_last,
    load_matrix,
    load_slots,
    load_tail,
    products,
    split,
)


@triton.jit
def sum_over_latents(
    query, lead_query, row_scores, column_scores, normaliser,
    feature_grad, lead_grad, row_grads, column_grads, shift,
    tail, lead, scale, mean_sums, rstd_sums,
    latents, rows, columns, channels, lead_channels, tiles,
    tile_columns: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr,
    parts: tl.constexpr, lead_parts: tl.constexpr, tile_latents: tl.constexpr,
):  # fmt: skip
    """Compute both sums, mean_sums and rstd_sums (B, R, W), for one tile of one row.

    Programs: (T * R, B).
    """
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) % rows
    tile = tl.program_id(0) // rows
    index = tl.arange(0, tile_columns)
    column = tile * tile_columns + index
    inside = column < columns
    query += sample * latents * channels
    feature_grad += sample * latents * channels
    lead_query += sample * latents * lead_parts * lead_width
    lead_grad += sample * latents * lead_parts * lead_width
    row_scores += sample * latents * rows
    row_grads += sample * latents * rows
    column_scores += sample * latents * columns
    column_grads += sample * latents * columns
    token_row = (sample * tiles + tile) * rows * tile_columns
    lead += token_row * lead_parts * lead_width
    t0, t1, t2 = load_tail(tail + token_row * parts * tail_width, row, tile_columns, tail_width, parts)
    by = tl.load(scale + token_row + row * tile_columns + index)
    number: tl.constexpr = by.dtype
    element: tl.constexpr = tail.dtype.element_ty
    one = (tl.arange(0, tail_width) == channels - lead_channels)[None, :]
    nothing = tl.zeros((tile_latents, tile_columns), number)
    by_mean = tl.zeros((tile_latents, tile_columns), number)
    by_rstd = tl.zeros((tile_latents, tile_columns), number)
    for first in range(0, latents, tile_latents):
        latent = first + tl.arange(0, tile_latents)
        live = latent < latents
        log_total = tl.load(normaliser + sample * latents + latent, mask=live, other=0.0) * LOG2_E
        subtracted = tl.load(shift + sample * latents + latent, mask=live, other=0.0)
        last_of_query = tl.load(query + latent * channels + channels - 1, mask=live, other=0.0)
        last_of_grad = tl.load(feature_grad + latent * channels + channels - 1, mask=live, other=0.0)
        last = load_last(query, latent, live, channels, lead_channels, tail_width)
        last += load_slots(row_scores, latent, live, row, rows, tail_width)
        q0, q1, q2 = split(tl.where(one, -log_total[:, None], last * LOG2_E), element, parts)
        last = load_last(feature_grad, latent, live, channels, lead_channels, tail_width)
        last += load_slots(row_grads, latent, live, row, rows, tail_width)
        g0, g1, g2 = split(tl.where(one, -subtracted[:, None], last), element, parts)
        # -inf for latents beyond the last one, too: here they are summed over.
        live_and_inside = live[:, None] & inside[None, :]
        column_terms = load_matrix(column_scores, latent, live, column, inside, columns) * LOG2_E
        column_terms = tl.where(live_and_inside, column_terms, float("-inf"))
        column_outs = load_matrix(column_grads, latent, live, column, inside, columns)
        scores = column_terms * by[None, :] + products(
            q0, q1, q2, t0, t1, t2, lead_query, lead, row, latent, live, nothing,
            tile_columns, lead_width, parts, lead_parts,
        )  # fmt: skip
        values = column_outs * by[None, :] + products(
            g0, g1, g2, t0, t1, t2, lead_grad, lead, row, latent, live, nothing,
            tile_columns, lead_width, parts, lead_parts,
        )  # fmt: skip
        weights = tl.exp2(scores)
        score_grads = weights * values
        by_mean += score_grads * last_of_query[:, None] + weights * last_of_grad[:, None]
        # 0 * -inf would be NaN.
        true_scores = tl.where(live_and_inside, scores + log_total[:, None], 0.0) / LOG2_E
        by_rstd += score_grads * true_scores + weights * (values + subtracted[:, None])
    token = (sample * rows + row) * columns + column
    tl.store(mean_sums + token, tl.sum(by_mean, 0), mask=inside)
    tl.store(rstd_sums + token, tl.sum(by_rstd, 0), mask=inside)
