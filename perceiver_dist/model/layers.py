"""Layers of the latent Transformer, learned arrays, and the initialisation of all linear layers.

Shapes: B batch, N latents, D latent width, H heads.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceiver_dist.model.inputs import LAYER_NORM_EPS
from perceiver_dist.model.self_attention import attend_to_each_other

_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal truncated at +-2. Dividing by it restores the intended variance."""


def init_weight(weight: Tensor) -> Tensor:
    """Initialise a linear layer's weight in place as the authors' code does (Haiku's VarianceScaling, scale 1.0).

    The distribution is a normal truncated at two standard deviations, of variance 1 / fan-in.

    Args:
        weight: (out, in).

    Returns:
        The same tensor.
    """
    std = sqrt(1 / weight.shape[1]) / _TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """Build a Linear with the authors' initialisation and zero bias.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        scale: Factor of the initial weights.

    Returns:
        The module, (..., inputs) -> (..., outputs).
    """
    module = nn.Linear(inputs, outputs)
    init_weight(module.weight)
    with torch.no_grad():
        module.weight.mul_(scale)
    nn.init.zeros_(module.bias)
    return module


class DenseBlock(nn.Module):
    """LayerNorm, Linear, GELU (erf), Linear, with a residual; the hidden width is D, as in the paper.

    Args:
        width: Latent width D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.expand = linear(width, width)
        self.project = linear(width, width)

    def forward(self, latents: Tensor) -> Tensor:
        """Update each latent independently.

        Args:
            latents: (B, N, D).

        Returns:
            (B, N, D).
        """
        hidden: Tensor = self.project(F.gelu(self.expand(self.norm(latents))))
        return latents + hidden


class SelfAttend(nn.Module):
    """One latent Transformer layer: pre-norm self-attention with H heads, then a dense block.

    Args:
        width: Latent width D.
        heads: Number of heads H; divides D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        # One matrix product for the three, and one parameter for ZeRO to gather.
        self.query_key_value = linear(width, 3 * width)
        self.output = linear(width, width)
        self.dense = DenseBlock(width)

    def forward(self, latents: Tensor) -> Tensor:
        """Update the latents from each other.

        Args:
            latents: (B, N, D).

        Returns:
            (B, N, D).
        """
        stacked: Tensor = self.query_key_value(self.norm(latents))
        batch, rows, _ = latents.shape
        query, key, value = stacked.view(batch, rows, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = attend_to_each_other(query, key, value)
        mixed: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        result: Tensor = self.dense(latents + mixed)
        return result


class LatentBlock(nn.ModuleList):
    """Self-attention layers that run one after the other.

    Args:
        layers: Number of layers.
        width: Latent width D.
        heads: Number of heads of each layer.
        checkpointing: Whether each layer is computed again in the backward pass.
    """

    def __init__(self, layers: int, width: int, heads: int, checkpointing: bool) -> None:
        super().__init__(SelfAttend(width, heads) for _ in range(layers))
        self.checkpointing = checkpointing

    def forward(self, latents: Tensor, depth: Tensor | None = None) -> Tensor:
        """Update the latents.

        Args:
            latents: (B, N, D).
            depth: (layers, B), by how much each layer updates each sample, as for `updated`; None for 1.

        Returns:
            (B, N, D).
        """
        for number, layer in enumerate(self):
            after = run(layer, latents, checkpointing=self.checkpointing)
            latents = after if depth is None else updated(latents, after, depth[number])
        return latents


def updated(before: Tensor, after: Tensor, depth: Tensor) -> Tensor:
    """Scale the update of a layer per sample: stochastic depth (Huang et al. 2016, arXiv 1603.09382).

    Args:
        before: (B, N, D), the latents before the layer.
        after: (B, N, D), and after it.
        depth: (B,) factor of the difference: 0 leaves the layer out.

    Returns:
        (B, N, D).
    """
    return before + depth.to(before.dtype)[:, None, None] * (after - before)


def run(layer: nn.Module, *inputs: Any, checkpointing: bool) -> Tensor:
    """Call a layer, and with `checkpointing` keep nothing of it but its inputs until the backward pass.

    Args:
        layer: The layer; its forward pass draws no random numbers, so their state need not be saved.
        inputs: Its arguments.
        checkpointing: Whether it is computed again in the backward pass.

    Returns:
        (B, N, D), the updated latents.
    """
    if not (checkpointing and torch.is_grad_enabled()):
        result: Tensor = layer(*inputs)
        return result
    # Reentrant checkpointing breaks ZeRO where a forward pass uses the same weights more than once.
    recomputed: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
    return recomputed


class LearnedArrays(nn.Module):
    """Named parameters of which a step may use only some.

    `forward` returns all of them whatever the step uses, so the module takes part in every forward pass (see
    `no_effect`). They are initialised like the authors' learned positions: truncated normal, standard deviation 0.02.

    Args:
        shapes: Shape of each parameter, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))

    def forward(self) -> dict[str, Tensor]:
        """Return all parameters by name, each of any shape.

        They are copies, because ZeRO-3 frees a gathered parameter's memory when its module returns.
        """
        return {name: parameter.clone() for name, parameter in self.named_parameters()}


def no_effect(tensors: list[Tensor], like: Tensor) -> Tensor:
    """Return a scalar 0 that depends on the tensors, so that each gets a zero gradient instead of none.

    ZeRO stages differ in how they treat a parameter without a gradient, and ZeRO-3 expects every step to call the
    modules of the first one. So every parameter takes part in every forward pass: what a result does not depend on is
    added as this zero.

    Args:
        tensors: Tensors of any shape.
        like: Any tensor with the dtype and device of the result.
    """
    total = like.new_zeros(())
    for tensor in tensors:
        total = total + tensor.sum()
    return 0 * total
