"""Cross-attention that never builds the (B, M, C) array of tokens.

Shapes: B batch, M tokens, N latents, C = c + P + E token channels, A = c + 2 feature channels. A token consists of
content c_j of the sample, position F_j shared by all samples, and modality encoding e shared by all tokens:

    xhat_j = rstd_j * ([c_j | F_j | e] - mean_j).

With a folded query q = [q_c | q_F | q_e] (attention.py), its score needs A channels per sample and one product with F:

    q . xhat_j = rstd_j * (q_c . c_j  +  q_F . F_j  +  q_e . e  -  sum(q) * mean_j)
               = rstd_j * (r . u_j  +  q_F . F_j),    u_j = [c_j | 1 | mean_j],    r = [q_c | q_e . e | -sum(q)].

Output: the average separates likewise. With weights p = softmax(scores) and sums over j,

    sum p xhat = [o_c | o_F | o_1 * e] - o_mean,    [o_c | o_1 | o_mean] = sum p rstd u,    o_F = sum p rstd F.

Plain torch computes r and this combination; `_Attention` does the softmax between them, on tiles that fit in cache.

Backward: as in FlashAttention (arXiv 2205.14135, section 3.1), the output O and the log-sum-exp L of the scores are
kept and the scores recomputed. With dP_j = dO . xhat_j, computed like a score, and the incoming gradient dL,

    dS_j = p_j * (dP_j - dO . O + dL),    dq = sum dS xhat, which separates like the output,
    dF_j = sum over samples and queries of rstd_j * (dS_j * q_F + p_j * dO_F), where positions are learned.

Combination: attention over a union of token sets is the average of the sets' attentions with weights softmax(L over
sets), since exp(L) is the sum of a set's exponentials (online softmax, arXiv 1805.02867). This combines tiles, and
modalities: one that a sample lacks gets L = -inf, hence weight 0 exactly.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.model.inputs import Presence, Tokens
from perceiver_dist.model.precision import compute_dtype
from perceiver_dist.model.separable import AxisOrder, attend_to_grid

_TILE_SCORES = {"cpu": 2**18, "cuda": 2**26}
"""Scores in one tile, which covers all latents and as many tokens as fit. On CPUs 2**18 fp32 scores are 1 MiB, the L2
cache of a core; tiles of few latents and all tokens took twice the time, since their matrix products are thin. On CUDA
2**26 (256 MiB in fp32) is a guess that bounds memory and keeps launches few; no other size was measured."""


class FactoredTokens:
    """Tokens kept in parts: memory for A = c + 2 channels per token instead of C, plus one tile of scores.

    Scores and sums are in fp32 or fp64, whatever the query's dtype: subtracting the mean cancels leading digits.

    Args:
        tokens: One entry per modality of the step.
        presence: Which modalities each sample has; None if no sample lacks one.
        by_axis: Whether grids with separable positions are scored axis by axis (separable.py).
    """

    def __init__(self, tokens: list[Tokens], presence: Presence | None, by_axis: bool) -> None:
        self.tokens = tokens
        self.presence = presence
        self.orders = [AxisOrder(part.axes) if by_axis and part.axes else None for part in tokens]
        self.features = [_features(part) for part in tokens]
        content = tokens[0].content
        if content.device.type == "cpu" and compute_dtype(content) == torch.bfloat16:
            # The channels apart in memory: products with the few channels then take a third of the time on CPUs.
            self.features = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in self.features]

    def attend(self, query: Tensor) -> Tensor:
        """See `attention.AttendableTokens.attend`.

        Args:
            query: (B, N, C).

        Returns:
            (B, N, C) in the query's dtype.
        """
        products = compute_dtype(query)
        # Autocast would cast the products to bfloat16, but they accumulate in place into fp32 arrays.
        with torch.autocast(query.device.type, enabled=False):
            return self._attend(query.to(self.tokens[0].content.dtype), products).to(query.dtype)

    def _attend(self, query: Tensor, products: torch.dtype) -> Tensor:
        """Attend to each modality, then combine them by their log-sum-exp: (B, N, C) -> (B, N, C)."""
        attended, normalisers = zip(
            *(self._attend_one(query, index, products) for index in range(len(self.tokens))), strict=True
        )
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

    def _attend_one(self, query: Tensor, index: int, products: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the attended tokens of one modality, (B, N, C), and the log-sum-exp of its scores, (B, N)."""
        tokens, features, order = self.tokens[index], self.features[index], self.orders[index]
        content_query, position_query, encoding_query = torch.split(query, list(tokens.channels), dim=-1)
        encoding_score = (encoding_query * tokens.encoding).sum(-1, keepdim=True)
        feature_query = torch.cat([content_query, encoding_score, -query.sum(-1, keepdim=True)], dim=-1)
        if order is not None:
            feature_sum, position_sum, normaliser = attend_to_grid(
                feature_query,
                position_query,
                features,
                tokens.axes,
                order,
                tokens.mean,
                tokens.rstd,
                products,
            )
        else:
            feature_sum, position_sum, normaliser = _Attention.apply(
                feature_query, position_query, features, tokens.position, tokens.mean, tokens.rstd
            )
        content_sum, ones_sum, mean_sum = torch.split(feature_sum, [tokens.channels[0], 1, 1], dim=-1)
        attended = torch.cat([content_sum, position_sum, ones_sum * tokens.encoding], dim=-1) - mean_sum
        return attended, normaliser


def _features(tokens: Tokens) -> Tensor:
    """Return u = [content | 1 | mean], (B, M, A), without gradient; `_Attention` computes that of mean."""
    mean = tokens.mean.detach()[:, :, None]
    return torch.cat([tokens.content, torch.ones_like(mean), mean], dim=-1)


class _Attention(torch.autograd.Function):
    """Attention with keys = values = rstd * [features | position], with gradients for all but `features`.

    `mean` is the last channel of `features`. It is an argument of its own so that it can receive a gradient. In the
    notation of the module, `u`, `f` and `scale` are u, F and rstd of a tile, `value_grad` is dP and `score_grad` dS.
    """

    @staticmethod
    def forward(
        ctx: Any,
        feature_query: Tensor,
        position_query: Tensor,
        features: Tensor,
        position: Tensor,
        mean: Tensor,  # noqa: ARG004  # see the class
        rstd: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, N, A), (B, N, P), (B, M, A), (M, P), (B, M), (B, M) to (B, N, A), (B, N, P), (B, N)."""
        feature_sum, position_sum = torch.zeros_like(feature_query), torch.zeros_like(position_query)
        normaliser = feature_query.new_full((*feature_query.shape[:2], 1), -torch.inf)
        for samples, tokens in _tiles(feature_query, features):
            u, f, scale = features[samples, tokens], position[tokens], rstd[samples, None, tokens]
            scores = _products(feature_query[samples], position_query[samples], u, f).mul_(scale)
            peak = scores.amax(-1, keepdim=True)
            weights = scores.sub_(peak).exp_()
            # Online softmax: rescale the sums so far, and those of this tile, to their common log-sum-exp.
            merged = torch.logaddexp(normaliser[samples], peak + weights.sum(-1, keepdim=True).log())
            before, here = (normaliser[samples] - merged).exp(), (peak - merged).exp()
            feature_part, position_part = _sums(weights.mul_(scale), u, f)
            feature_sum[samples] = feature_sum[samples] * before + feature_part * here
            position_sum[samples] = position_sum[samples] * before + position_part * here
            normaliser[samples] = merged
        ctx.save_for_backward(
            feature_query, position_query, features, position, rstd, feature_sum, position_sum, normaliser
        )
        return feature_sum, position_sum, normaliser[..., 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, feature_grad: Tensor, position_grad: Tensor, normaliser_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of forward's arguments."""
        feature_query, position_query, features, position, rstd, feature_sum, position_sum, normaliser = (
            ctx.saved_tensors
        )
        shift = (
            (feature_grad * feature_sum).sum(-1) + (position_grad * position_sum).sum(-1) - normaliser_grad
        )
        feature_query_grad = torch.zeros_like(feature_query)
        position_query_grad = torch.zeros_like(position_query)
        learned, statistics = ctx.needs_input_grad[3], ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
        table_grad = torch.zeros_like(position)
        mean_grad, rstd_grad = torch.empty_like(rstd), torch.empty_like(rstd)
        for samples, tokens in _tiles(feature_query, features):
            u, f, scale = features[samples, tokens], position[tokens], rstd[samples, None, tokens]
            scores = _products(feature_query[samples], position_query[samples], u, f).mul_(scale)
            weights = (scores - normaliser[samples]).exp_()
            value_grad = _products(feature_grad[samples], position_grad[samples], u, f).mul_(scale)
            score_grad = (value_grad - shift[samples, :, None]).mul_(weights)
            if statistics:
                # xhat = rstd * (x - mean), so drstd = dxhat . xhat / rstd. As dxhat = sum dS q + p dO, it takes only
                # the products that are here: the scores q . xhat and dP = dO . xhat.
                by_mean = _last_channel(score_grad, feature_query[samples]) + _last_channel(
                    weights, feature_grad[samples]
                )
                mean_grad[samples, tokens] = by_mean * scale[:, 0]
                rstd_grad[samples, tokens] = (score_grad * scores + weights * value_grad).sum(1) / scale[:, 0]
            score_grad.mul_(scale)
            if learned:
                table_grad[tokens] += _shared_sum(score_grad, position_query[samples])
                table_grad[tokens] += _shared_sum(weights.mul_(scale), position_grad[samples])
            feature_part, position_part = _sums(score_grad, u, f)
            feature_query_grad[samples] += feature_part
            position_query_grad[samples] += position_part
        optional = (
            table_grad if learned else None,
            *((mean_grad, rstd_grad) if statistics else (None, None)),
        )
        return feature_query_grad, position_query_grad, None, *optional


def _tiles(queries: Tensor, features: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices (samples, tokens) that cover (B, M), each with a bounded number of scores."""
    (batch, rows, _), count = queries.shape, features.shape[1]
    budget = _TILE_SCORES.get(queries.device.type, _TILE_SCORES["cuda"]) // rows
    tile_tokens = min(count, max(1, budget))
    tile_samples = max(1, budget // count)
    for first in range(0, batch, tile_samples):
        for token in range(0, count, tile_tokens):
            yield slice(first, first + tile_samples), slice(token, token + tile_tokens)


def _products(feature_query: Tensor, position_query: Tensor, features: Tensor, position: Tensor) -> Tensor:
    """Return feature_query . features + position_query . position, (b, N, m) for a tile of b samples and m tokens.

    The second product has the same right side for all samples, so it is one large matrix product.
    """
    batch, rows, _ = feature_query.shape
    shared = (position_query.flatten(0, 1) @ position.T).view(batch, rows, -1)
    return shared.baddbmm_(feature_query, features.transpose(1, 2))


def _sums(weights: Tensor, features: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sums over the tile's tokens of features, (b, N, A), and of positions, (b, N, P)."""
    batch, rows, _ = weights.shape
    position_sum = (weights.flatten(0, 1) @ position).view(batch, rows, -1)
    return weights @ features, position_sum


def _shared_sum(weights: Tensor, queries: Tensor) -> Tensor:
    """Return the sum over the tile's samples and queries of weights (b, N, m) times queries (b, N, P): (m, P)."""
    return weights.flatten(0, 1).T @ queries.flatten(0, 1)


def _last_channel(weights: Tensor, queries: Tensor) -> Tensor:
    """Return the sum over queries of weights (b, N, m) times the queries' last channel: (b, m)."""
    return (queries[:, None, :, -1] @ weights)[:, 0]
