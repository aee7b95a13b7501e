"""Cross-attention of latents to tokens: the paper's function with nothing projected per token.

The paper computes, for a query Q = W_q LN(latent) + b_q and every token x of C channels,

    softmax_j( Q . K_j / sqrt(C) ),   K_j = W_k y_j + b_k,   V_j = W_v y_j + b_v,   y_j = g * xhat_j + b,

with xhat = (x - mean) * rstd the plainly normalised token and g, b the LayerNorm's gain and bias. Then

    Q . K_j / sqrt(C) = [ g * (W_k^T Q) / sqrt(C) ] . xhat_j + (a term without j),

and a term without j drops out of the softmax. So `q = g * (W_k^T Q) / sqrt(C)` scores against xhat directly;
b_k never matters, b matters in the values only. As the weights p_j of a softmax sum to 1,

    sum_j p_j V_j = W_v (g * sum_j p_j xhat_j + b) + b_v,

so W_v comes after attention. Keys and values of every cross-attend, shared or not, are therefore the one
array xhat, made once per forward pass: 2 M C^2 multiplications per cross-attend become 2 N C^2.

How q meets xhat is the business of the object that holds the tokens, `AttendableTokens`:
- `DenseTokens` builds xhat, (B, M, C), and calls torch's fused attention;
- `FactoredTokens` (factored.py) never builds it, and makes the scores of a grid axis by axis (separable.py);
- `LatentTokens` are the latents themselves, which a decoder reads (readout.py).
"""

from math import sqrt
from typing import Literal, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from perceiver_dist.modalities import tokens
from perceiver_dist.model.inputs import LAYER_NORM_EPS, Presence, Tokens
from perceiver_dist.model.layers import DenseBlock, init_weight, linear, no_effect
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.positions import separates_by_axis

# Fused kernels on GPUs want channels in multiples of 8; 261 (the paper's ImageNet) becomes 264.
CHANNEL_MULTIPLE = 8

# Tokens of a grid from which separable scores are faster on CPUs.
_SEPARABLE_TOKENS = 1024


class AttendableTokens(Protocol):
    """All tokens of a batch, normalised over their C channels, as keys and values of attention."""

    def attend(self, query: Tensor) -> Tensor:
        """Average the normalised tokens with softmax(query . token) as weights.

        Args:
            query: (B, N, C), scale and key projection folded in.

        Returns:
            (B, N, C) in the query's dtype; 0 for a sample in which no modality is present.
        """
        ...


class DenseTokens:
    """Tokens as one array: the fused kernel's way, with B * M * C values kept during the forward pass.

    Args:
        tokens: One entry per modality of the step.
        presence: What is missing, or None.
        dtype: Of the array; the model's parameters' dtype.
    """

    def __init__(self, tokens: list[Tokens], presence: Presence | None, dtype: torch.dtype) -> None:
        normalised = torch.cat([_normalise(part) for part in tokens], dim=1)
        self.channels = normalised.shape[-1]
        self.padding = -self.channels % CHANNEL_MULTIPLE
        self.keys = F.pad(normalised, (0, self.padding)).to(dtype)[:, None]
        self.presence = presence
        self.mask: Tensor | None = None
        if presence is not None:
            columns = torch.split(presence.visible, 1, dim=1)
            seen = [column.expand_as(part.mean) for column, part in zip(columns, tokens, strict=True)]
            self.mask = torch.cat(seen, dim=1)[:, None, None, :]

    def attend(self, query: Tensor) -> Tensor:
        """See `AttendableTokens.attend`.

        Args:
            query: (B, N, C).

        Returns:
            (B, N, C) in the query's dtype.
        """
        padded = F.pad(query, (0, self.padding))[:, None]
        attended = F.scaled_dot_product_attention(
            padded, self.keys, self.keys, attn_mask=self.mask, scale=1.0
        )
        attended = attended[:, 0, :, : self.channels]
        return attended if self.presence is None else attended * self.presence.nonempty


class LatentTokens:
    """The latents as the tokens of a decoder."""

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


def _normalise(tokens: Tokens) -> Tensor:
    """(B, M, C): the parts put together, minus mean, times rstd."""
    batch, count, _ = tokens.content.shape
    position = tokens.position.expand(batch, -1, -1)
    encoding = tokens.encoding.expand(batch, count, -1)
    together = torch.cat([tokens.content, position, encoding], dim=-1)
    return (together - tokens.mean[:, :, None]) * tokens.rstd[:, :, None]


def attention_path(config: ModelConfig, device: str) -> Literal["dense", "factored", "separable"]:
    """Choose how cross-attention is computed where the configuration leaves it open.

    Args:
        config: The model's options.
        device: Type of the device, as in `torch.device.type`.

    Returns:
        The configured path; for "auto", on CPUs, "separable" if there is a grid that is large enough for it to be
        faster, else "factored", which needs about a fifth less time than "dense" on large inputs, the same within
        noise on small ones, and about half the memory. "dense" elsewhere: one fused kernel instead of many small
        ones; not measured.
    """
    if config.cross_attention != "auto":
        return config.cross_attention
    if device != "cpu":
        return "dense"
    grids = [spec for spec in config.modalities.values() if separates_by_axis(spec)]
    return "separable" if any(tokens(spec) >= _SEPARABLE_TOKENS for spec in grids) else "factored"


class CrossAttend(nn.Module):
    """Latents read the tokens: pre-norm single-head cross-attention with a residual, then a dense block.

    LN gain, LN bias and key projection are parameters of this module itself, not of child modules: they are
    folded into other things here, and ZeRO-3 gathers a module's parameters when the module itself is called.

    Args:
        width: Latent width D.
        channels: Token channels C, which queries, keys and values have too.
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

        A sample without any token reads the normalised token 0: it gets value and output biases only.

        Args:
            latents: (B, N, D).
            tokens: The batch's tokens, C channels.

        Returns:
            (B, N, D).
        """
        query: Tensor = self.query(self.latent_norm(latents))
        scale = self.token_gain / sqrt(query.shape[-1])
        attended = tokens.attend(query @ self.key_weight * scale)
        read: Tensor = self.output(self.value(attended * self.token_gain + self.token_bias))
        # The key bias is one of the paper's 44,912,254 parameters, though no result depends on it.
        result: Tensor = self.dense(latents + read + no_effect([self.key_bias], like=read))
        return result
