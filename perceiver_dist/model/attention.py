"""Single-head cross-attention from latents to tokens, without projecting any token.

Shapes: B batch, M tokens, N latents, C token channels, D latent width. For one latent, the paper computes

    sum_j p_j V_j,    p = softmax_j(Q . K_j / sqrt(C)),    Q = W_q LayerNorm(latent) + b_q,
    K_j = W_k y_j + b_k,    V_j = W_v y_j + b_v,    y_j = g * xhat_j + b,    xhat_j = (x_j - mean_j) * rstd_j.

Both projections of the tokens can be moved to the latents, of which there are far fewer:

1. Keys. Q . K_j / sqrt(C) = [g * (W_k^T Q)] . xhat_j / sqrt(C) + Q . (W_k b + b_k) / sqrt(C). The last term is the
   same for all tokens, and a softmax does not change when a constant is added to all scores. So the folded query
   q = g * (W_k^T Q) / sqrt(C) scores the normalised tokens directly, and b_k never has an effect.
2. Values. The weights sum to 1, so sum_j p_j V_j = W_v (g * sum_j p_j xhat_j + b) + b_v: W_v comes after attention.

Every cross-attend, whatever its weights, thus uses the one array xhat as keys and as values. It is built once per
forward pass, and the 2 M C^2 multiplications of the projections become 2 N C^2. The same algebra serves multi-head
latent attention, where it is called weight absorption (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).

The object that holds the tokens computes the softmax and the weighted sum, behind the protocol `AttendableTokens`:
- `DenseTokens` builds xhat, (B, M, C), and calls torch's fused attention;
- `FactoredTokens` (factored.py) never builds it, and can score a grid axis by axis (separable.py);
- `LatentTokens` are the latents themselves, which a decoder reads (readout.py).
"""

from collections.abc import Sequence
from math import sqrt
from typing import Literal, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from perceiver_dist.modalities import tokens
from perceiver_dist.model.inputs import LAYER_NORM_EPS, Presence, Tokens
from perceiver_dist.model.layers import DenseBlock, init_weight, linear
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.positions import separates_by_axis

CHANNEL_MULTIPLE = 8
"""Channels are padded to a multiple of 8, which fused GPU kernels require: 261 on ImageNet becomes 264."""

_SEPARABLE_TOKENS = 1024
"""Grid size from which separable scores are chosen on CPUs. With the default model they took 0.9 to 1.9 times the
speed of factored ones up to 1,024 tokens, and about twice from 2,304 on (docs/experiments.md)."""


_SEPARABLE_SCORES = 2**24
"""Scores of a sample, N * M, from which separable scores are chosen on CUDA. Measured on an H200 in bf16, steps of
whole models (docs/experiments.md): with 25.7 million scores (ImageNet) separable reached 82.5 images/s and dense 50.3
in batches of 32, 27.5 and 32.3 in batches of 4, and dense ran out of memory with 128. With 6.4 million (AudioSet video)
dense reached 465 clips/s, separable 382. The threshold lies between the two."""


class AttendableTokens(Protocol):
    """The tokens of a batch, normalised over their C channels, as keys and values of attention."""

    def attend(self, query: Tensor) -> Tensor:
        """Return the average of the normalised tokens, weighted by softmax(query . token).

        Args:
            query: (B, N, C), with scale and key projection folded in.

        Returns:
            (B, N, C) in the query's dtype; 0 for a sample in which no modality is present.
        """
        ...


class ForwardObserver(Protocol):
    """What measures a forward pass of the model without changing its results."""

    def over(
        self, attendable: AttendableTokens, tokens: Sequence[Tokens], presence: Presence | None
    ) -> AttendableTokens:
        """Return the tokens that the cross-attends are given, with the results of `attendable`.

        Args:
            attendable: The tokens of the batch, as keys and values.
            tokens: The same by modality.
            presence: Which modalities each sample has; None if no sample lacks one.
        """
        ...

    def saw_latents(self, latents: Tensor) -> None:
        """Take the latents after the last block.

        Args:
            latents: (B, N, D).
        """
        ...


class DenseTokens:
    """Tokens as one array (B, M, C) for torch's fused attention.

    Args:
        tokens: One entry per modality of the step.
        presence: Which modalities each sample has; None if no sample lacks one.
        dtype: Dtype of the array, `precision.compute_dtype` of the model: cast here, and not by autocast at every use.
    """

    def __init__(self, tokens: list[Tokens], presence: Presence | None, dtype: torch.dtype) -> None:
        keys = torch.cat([normalised(part) for part in tokens], dim=1)
        self.channels = keys.shape[-1]
        self.padding = -self.channels % CHANNEL_MULTIPLE
        # One head: torch's fused attention takes (B, H, M, C).
        self.keys = F.pad(keys, (0, self.padding)).to(dtype)[:, None]
        self.presence = presence
        self.mask: Tensor | None = None
        if presence is not None:
            # (B, 1, 1, M): the same for all latents.
            self.mask = visible_tokens(presence, tokens)[:, None, None, :]

    def attend(self, query: Tensor) -> Tensor:
        """See `AttendableTokens.attend`.

        Args:
            query: (B, N, C).

        Returns:
            (B, N, C) in the query's dtype.
        """
        # Zeros in the padded channels change no score. The scale 1 / sqrt(C) is part of the folded query.
        padded = F.pad(query, (0, self.padding))[:, None]
        attended = F.scaled_dot_product_attention(
            padded, self.keys, self.keys, attn_mask=self.mask, scale=1.0
        )
        attended = attended[:, 0, :, : self.channels]
        return attended if self.presence is None else attended * self.presence.nonempty


class LatentTokens:
    """Latents in the role of tokens, for a decoder."""

    def __init__(self, latents: Tensor) -> None:
        """Normalise the latents.

        Args:
            latents: (B, N, D).
        """
        self.keys = F.layer_norm(latents, latents.shape[-1:], eps=LAYER_NORM_EPS)

    def attend(self, query: Tensor) -> Tensor:
        """See `AttendableTokens.attend`.

        Args:
            query: (B, queries, D).

        Returns:
            (B, queries, D) in the query's dtype.
        """
        keys = self.keys.to(query.dtype)[:, None]
        return F.scaled_dot_product_attention(query[:, None], keys, keys, scale=1.0)[:, 0]


def normalised(tokens: Tokens) -> Tensor:
    """Return xhat, the concatenated parts, minus mean, times rstd.

    Args:
        tokens: Tokens of one modality.

    Returns:
        (B, M, C).
    """
    batch, count, _ = tokens.content.shape
    position = tokens.position.expand(batch, -1, -1)
    encoding = tokens.encoding.expand(batch, count, -1)
    concatenated = torch.cat([tokens.content, position, encoding], dim=-1)
    return (concatenated - tokens.mean[:, :, None]) * tokens.rstd[:, :, None]


def visible_tokens(presence: Presence, tokens: Sequence[Tokens]) -> Tensor:
    """Return which tokens attention sees.

    Args:
        presence: Which modalities each sample has.
        tokens: Tokens by modality.

    Returns:
        (B, M) bool, over the tokens of all modalities.
    """
    columns = torch.split(presence.visible, 1, dim=1)
    return torch.cat(
        [column.expand_as(part.mean) for column, part in zip(columns, tokens, strict=True)], dim=1
    )


def attention_path(config: ModelConfig, device: str) -> Literal["dense", "factored", "separable"]:
    """Return how cross-attention is computed: the configured path, or the choice made for "auto".

    On CPUs "auto" is "separable" if a modality has a grid large enough for it to be faster, else "factored". One
    factored cross-attend at the ImageNet setting took a fifth less time than a dense one (docs/experiments.md); whole
    steps take about the same time, in 0.6 to 1.1 times the memory (docs/benchmarks.md). On other devices "auto" is
    "separable" for grids larger still, and else "dense": one fused kernel instead of many small ones.

    Args:
        config: The model's options.
        device: Type of the device, as in `torch.device.type`.
    """
    if config.cross_attention != "auto":
        return config.cross_attention
    largest = max((tokens(spec) for spec in config.modalities.values() if separates_by_axis(spec)), default=0)
    if device == "cpu":
        return "separable" if largest >= _SEPARABLE_TOKENS else "factored"
    return "separable" if largest * config.latents >= _SEPARABLE_SCORES else "dense"


class CrossAttend(nn.Module):
    """Pre-norm single-head cross-attention of latents to tokens with a residual, then a dense block.

    The tokens' LayerNorm gain and bias and the key projection are parameters of this module, not of child modules.
    They are folded into the query and the output without a child being called, and ZeRO-3 gathers a module's
    parameters only when that module is called.

    Args:
        width: Latent width D.
        channels: Token channels C; queries, keys and values have as many.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.latent_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.token_gain = nn.Parameter(torch.ones(channels))
        self.token_bias = nn.Parameter(torch.zeros(channels))
        self.query = linear(width, channels)
        self.key_weight = nn.Parameter(init_weight(torch.empty(channels, channels)))
        self.key_bias = nn.Parameter(torch.zeros(channels))
        self.value = linear(channels, channels)
        self.output = linear(channels, width)
        self.dense = DenseBlock(width)

    def forward(self, latents: Tensor, tokens: AttendableTokens) -> Tensor:
        """Update the latents from the tokens.

        A sample without any token reads an average of 0: the value projection sees the token bias alone.

        Args:
            latents: (B, N, D).
            tokens: The batch's tokens, C channels.

        Returns:
            (B, N, D).
        """
        return self.update(latents, tokens.attend(self.folded_query(latents)))

    def folded_query(self, latents: Tensor) -> Tensor:
        """Return the query that scores normalised tokens.

        Args:
            latents: (B, N, D).

        Returns:
            (B, N, C).
        """
        query: Tensor = self.query(self.latent_norm(latents))
        # Rows are vectors here: query @ W_k is W_k^T Q of the module's docstring.
        return query @ self.key_weight * (self.token_gain / sqrt(query.shape[-1]))

    def update(self, latents: Tensor, attended: Tensor) -> Tensor:
        """Update the latents from the average of the tokens.

        Args:
            latents: (B, N, D).
            attended: (B, N, C).

        Returns:
            (B, N, D).
        """
        # The key bias has no effect (see the module), but it is one of the paper's 44,912,254 parameters. Added to a
        # bias it gets its zero gradient (see `no_effect`) without another pass over the latents.
        bias = self.token_bias + 0 * self.key_bias
        read: Tensor = self.output(self.value(attended * self.token_gain + bias))
        result: Tensor = self.dense(latents + read)
        return result
