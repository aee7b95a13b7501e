"""Cross-attention that never builds the B x M x C array of tokens.

A normalised token is xhat_j = rstd_j * ([c_j | F_j | e] - mean_j): content c of the sample, position F that the
whole batch shares, modality encoding e that all tokens share. With q = [q_c | q_F | q_e] a folded query
(attention.py), its score is

    q . xhat_j = rstd_j * ( q_c . c_j + q_e . e * 1 - sum(q) * mean_j  +  q_F . F_j )
               = rstd_j * ( r . u_j  +  q_F . F_j ),    u_j = [c_j | 1 | mean_j],   r = [q_c | q_e . e | -sum(q)],

so few channels (c + 2) are per sample, and the rest is one matrix product with the shared F. With weights p,

    sum_j p_j xhat_j = [o_c | o_F | o_1 * e] - o_mean,   [o_c | o_1 | o_mean] = sum p rstd u,  o_F = sum p rstd F.

r and the last line are plain torch; `_Attention` does the softmax between, on tiles of tokens that fit a cache.
It keeps output and log-sum-exp L and makes the tile again in backward (FlashAttention, arXiv 2205.14135, 3.1).
With dP_j = dO . xhat_j, which has the form of the scores with dO for q, and an incoming gradient dL,

    dS_j = p_j * (dP_j - dO . O + dL);   dq = the same reduction as the output, with dS for p.

Where positions are learned, dF_j = the sum over samples and queries of rstd_j * (dS_j * q_F + p_j * dO_F).

Attention over a union of token sets is the average of the sets' attentions with weights softmax(L over sets).
Tiles are joined by it, and modalities: one that is not present is given L = -inf and counts for exactly nothing.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.model.inputs import Presence, Tokens
from perceiver_dist.model.separable import attend_to_grid

# Scores in one tile, which covers all latents and as many tokens as fit: 2**18 fp32 values are 1 MB, a CPU core's
# L2 cache. Tiles of few latents and all tokens took twice the time (thin matrix products). CUDA: not measured.
_TILE_SCORES = {"cpu": 2**18, "cuda": 2**26}


class FactoredTokens:
    """Tokens kept in parts: memory for c + 2 channels a token instead of C, and a tile of scores.

    Scores and sums are in fp32 at least, whatever the query's dtype: subtracting the mean cancels.

    Args:
        tokens: One entry per modality of the step.
        presence: What is missing, or None.
        by_axis: Whether the scores of a grid are made axis by axis (separable.py) where that can be.
    """

    def __init__(self, tokens: list[Tokens], presence: Presence | None, by_axis: bool) -> None:
        self.tokens = tokens
        self.presence = presence
        self.by_axis = by_axis
        self.own = [_own_features(part) for part in tokens]

    def attend(self, query: Tensor) -> Tensor:
        """See `attention.AttendableTokens.attend`.

        Args:
            query: (B, N, C).

        Returns:
            (B, N, C) in the query's dtype.
        """
        # Autocast would hand bfloat16 to products that add into fp32 sums, and scores need fp32 anyway.
        with torch.autocast(query.device.type, enabled=False):
            return self._attend(query.to(self.tokens[0].content.dtype)).to(query.dtype)

    def _attend(self, exact: Tensor) -> Tensor:
        pairs = zip(self.tokens, self.own, strict=True)
        attended, normalisers = zip(*(self._attend_one(exact, part, own) for part, own in pairs), strict=True)
        stacked = torch.stack(normalisers, dim=-1)
        if self.presence is not None:
            stacked = stacked.masked_fill(~self.presence.visible[:, None, :], -torch.inf)
        shares = stacked.softmax(dim=-1).unbind(dim=-1)
        result = torch.stack(
            [part * share[..., None] for part, share in zip(attended, shares, strict=True)]
        ).sum(0)
        if self.presence is not None:
            result = result * self.presence.nonempty
        return result

    def _attend_one(self, query: Tensor, tokens: Tokens, own: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) attended tokens of one modality and (B, N) log-sum-exp of its scores."""
        of_content, of_position, of_encoding = torch.split(query, list(tokens.channels), dim=-1)
        encoding_score = (of_encoding * tokens.encoding).sum(-1, keepdim=True)
        own_query = torch.cat([of_content, encoding_score, -query.sum(-1, keepdim=True)], dim=-1)
        if self.by_axis and tokens.axes:
            own_sum, position_sum, normaliser = attend_to_grid(
                own_query, of_position, own, tokens.axes, tokens.mean, tokens.rstd
            )
        else:
            own_sum, position_sum, normaliser = _Attention.apply(
                own_query, of_position, own, tokens.position, tokens.mean, tokens.rstd
            )
        content_sum, ones_sum, mean_sum = torch.split(own_sum, [tokens.channels[0], 1, 1], dim=-1)
        attended = torch.cat([content_sum, position_sum, ones_sum * tokens.encoding], dim=-1) - mean_sum
        return attended, normaliser


def _own_features(tokens: Tokens) -> Tensor:
    """(B, M, c + 2): u = [content | 1 | mean], without gradient (that of mean is made in `_Attention`)."""
    mean = tokens.mean.detach()[:, :, None]
    return torch.cat([tokens.content, torch.ones_like(mean), mean], dim=-1)


class _Attention(torch.autograd.Function):
    """Attention with keys = values = rstd * [own | position]; gradients for all but `own`.

    `mean` is the last channel of `own`; it is an argument for its gradient's sake.
    """

    @staticmethod
    def forward(
        ctx: Any,
        own_query: Tensor,
        position_query: Tensor,
        own: Tensor,
        position: Tensor,
        mean: Tensor,  # noqa: ARG004  # see the class
        rstd: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, A), (B, N, P), (B, M, A), (M, P), (B, M), (B, M) -> (B, N, A), (B, N, P), (B, N)."""
        own_sum, position_sum = torch.zeros_like(own_query), torch.zeros_like(position_query)
        normaliser = own_query.new_full((*own_query.shape[:2], 1), -torch.inf)
        for samples, tokens in _tiles(own_query, own):
            keys, places, scale = own[samples, tokens], position[tokens], rstd[samples, None, tokens]
            scores = _products(own_query[samples], position_query[samples], keys, places).mul_(scale)
            peak = scores.amax(-1, keepdim=True)
            weights = scores.sub_(peak).exp_()
            merged = torch.logaddexp(normaliser[samples], peak + weights.sum(-1, keepdim=True).log())
            before, here = (normaliser[samples] - merged).exp(), (peak - merged).exp()
            own_part, position_part = _sums(weights.mul_(scale), keys, places)
            own_sum[samples] = own_sum[samples] * before + own_part * here
            position_sum[samples] = position_sum[samples] * before + position_part * here
            normaliser[samples] = merged
        ctx.save_for_backward(
            own_query, position_query, own, position, rstd, own_sum, position_sum, normaliser
        )
        return own_sum, position_sum, normaliser[..., 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, own_grad: Tensor, position_grad: Tensor, normaliser_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients in the order of forward's arguments."""
        own_query, position_query, own, position, rstd, own_sum, position_sum, normaliser = ctx.saved_tensors
        shift = (own_grad * own_sum).sum(-1) + (position_grad * position_sum).sum(-1) - normaliser_grad
        own_query_grad, position_query_grad = torch.zeros_like(own_query), torch.zeros_like(position_query)
        learned, statistics = ctx.needs_input_grad[3], ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
        place_grad = torch.zeros_like(position)
        mean_grad, rstd_grad = torch.empty_like(rstd), torch.empty_like(rstd)
        for samples, tokens in _tiles(own_query, own):
            keys, places, scale = own[samples, tokens], position[tokens], rstd[samples, None, tokens]
            scores = _products(own_query[samples], position_query[samples], keys, places).mul_(scale)
            weights = (scores - normaliser[samples]).exp_()
            value_grad = _products(own_grad[samples], position_grad[samples], keys, places).mul_(scale)
            score_grad = (value_grad - shift[samples, :, None]).mul_(weights)
            if statistics:
                # xhat = rstd * (x - mean), so d/d rstd is (gradient of xhat) . xhat / rstd: products in the tiles.
                by_mean = _last_channel(score_grad, own_query[samples]) + _last_channel(
                    weights, own_grad[samples]
                )
                mean_grad[samples, tokens] = by_mean * scale[:, 0]
                rstd_grad[samples, tokens] = (score_grad * scores + weights * value_grad).sum(1) / scale[:, 0]
            score_grad.mul_(scale)
            if learned:
                place_grad[tokens] += _shared_sum(score_grad, position_query[samples])
                place_grad[tokens] += _shared_sum(weights.mul_(scale), position_grad[samples])
            own_part, position_part = _sums(score_grad, keys, places)
            own_query_grad[samples] += own_part
            position_query_grad[samples] += position_part
        optional = (
            place_grad if learned else None,
            *((mean_grad, rstd_grad) if statistics else (None, None)),
        )
        return own_query_grad, position_query_grad, None, *optional


def _tiles(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices (samples, tokens) that cover (B, M), each with a bounded number of scores."""
    (batch, rows, _), count = queries.shape, keys.shape[1]
    budget = _TILE_SCORES.get(queries.device.type, _TILE_SCORES["cuda"]) // rows
    tile_tokens = min(count, max(1, budget))
    tile_samples = max(1, budget // count)
    for first in range(0, batch, tile_samples):
        for token in range(0, count, tile_tokens):
            yield slice(first, first + tile_samples), slice(token, token + tile_tokens)


def _products(own_query: Tensor, position_query: Tensor, own: Tensor, position: Tensor) -> Tensor:
    """(b, n, M): own_query . own + position_query . position; the second is one product for all samples."""
    batch, rows, _ = own_query.shape
    shared = (position_query.flatten(0, 1) @ position.T).view(batch, rows, -1)
    return shared.baddbmm_(own_query, own.transpose(1, 2))


def _sums(weights: Tensor, own: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """(b, n, A) and (b, n, P): sums over the tokens of own and position features, times the weights."""
    batch, rows, _ = weights.shape
    position_sum = (weights.flatten(0, 1) @ position).view(batch, rows, -1)
    return weights @ own, position_sum


def _shared_sum(weights: Tensor, queries: Tensor) -> Tensor:
    """(M, P): sum over the tile's samples and queries (b, n, P) of weights (b, n, M) times the queries."""
    return weights.flatten(0, 1).T @ queries.flatten(0, 1)


def _last_channel(weights: Tensor, queries: Tensor) -> Tensor:
    """(b, M): sum over the tile's queries of weights (b, n, M) times the queries' last channel."""
    return (queries[:, None, :, -1] @ weights)[:, 0]
