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
    queries_of,
    split,
    tokens_of,
)


@triton.jit
def sum_over_latents(
    query, lead_query, row_scores, column_scores, normaliser,
    feature_grad, lead_grad, row_grads, column_grads, shift,
    tail, lead, scale, mean_sums, rstd_sums, latents, rows, columns, channels, lead_channels, tiles,
    tile_columns: tl.constexpr, tile_latents: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr,
    parts: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Compute both sums for one tile of one row. Programs: (T * R, B)."""
    sample = tl.program_id(1).to(tl.int64)
    row, tile = tl.program_id(0) % rows, tl.program_id(0) // rows
    column = tile * tile_columns + tl.arange(0, tile_columns)
    inside = column < columns
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
    t0, t1, t2 = load_tail(tail, row, tile_columns, tail_width, parts)
    by = tl.load(scale + row * tile_columns + tl.arange(0, tile_columns))
    element: tl.constexpr = tail.dtype.element_ty
    own = channels - lead_channels
    nothing = tl.zeros((tile_latents, tile_columns), by.dtype)
    by_mean, by_rstd = nothing, nothing
    for first in range(0, latents, tile_latents):
        latent = first + tl.arange(0, tile_latents)
        live = latent < latents
        of_latent = sample * latents + latent
        log_total = tl.load(normaliser + of_latent, mask=live, other=0.0) * LOG2_E
        subtracted = tl.load(shift + of_latent, mask=live, other=0.0)
        terms = _query(query, row_scores, latent, live, row, rows, channels, lead_channels, tail_width)
        q0, q1, q2 = split(_shifted(terms * LOG2_E, log_total, own, tail_width), element, parts)
        terms = _query(feature_grad, row_grads, latent, live, row, rows, channels, lead_channels, tail_width)
        g0, g1, g2 = split(_shifted(terms, subtracted, own, tail_width), element, parts)
        # -inf for latents beyond the last one, too: here they are summed over.
        live_and_inside = live[:, None] & inside[None, :]
        column_terms = load_matrix(column_scores, latent, live, column, inside, columns) * LOG2_E
        scores = tl.where(live_and_inside, column_terms, float("-inf")) * by[None, :] + products(
            q0, q1, q2, t0, t1, t2, lead_query, lead, row, latent, live, nothing,
            tile_columns, lead_width, parts, lead_parts,
        )  # fmt: skip
        values = load_matrix(column_grads, latent, live, column, inside, columns) * by[None, :] + products(
            g0, g1, g2, t0, t1, t2, lead_grad, lead, row, latent, live, nothing,
            tile_columns, lead_width, parts, lead_parts,
        )  # fmt: skip
        weights = tl.exp2(scores)
        score_grads = weights * values
        by_mean += score_grads * _last(query, latent, live, channels)
        by_mean += weights * _last(feature_grad, latent, live, channels)
        true_scores = (
            tl.where(live_and_inside, scores + log_total[:, None], 0.0) / LOG2_E
        )  # 0 * -inf would be NaN.
        by_rstd += score_grads * true_scores + weights * (values + subtracted[:, None])
    token = (sample * rows + row) * columns + column
    tl.store(mean_sums + token, tl.sum(by_mean, 0), mask=inside)
    tl.store(rstd_sums + token, tl.sum(by_rstd, 0), mask=inside)


@triton.jit
def _query(query, by_row, latent, live, row, rows, channels, lead_channels, tail_width: tl.constexpr):
    """Load [last features | 0 ... | the 8 rows around `row`], (tile_latents, tail_width)."""
    last = load_last(query, latent, live, channels, lead_channels, tail_width)
    return last + load_slots(by_row, latent, live, row, rows, tail_width)


@triton.jit
def _shifted(terms, shift, own, tail_width: tl.constexpr):
    """Put -shift after the `own` features of terms, (tile_latents, tail_width)."""
    return tl.where((tl.arange(0, tail_width) == own)[None, :], -shift[:, None], terms)


@triton.jit
def _last(array, latent, live, channels):
    """Load the last channel of (N, channels): (tile_latents, 1)."""
    return tl.load(array + latent * channels + channels - 1, mask=live, other=0.0)[:, None]
