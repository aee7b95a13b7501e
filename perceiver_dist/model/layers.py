"""The parts of the latent Transformer, learned arrays, and the initialisation of all linear maps."""

from collections.abc import Mapping
from math import sqrt

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from perceiver_dist.model.inputs import LAYER_NORM_EPS

# Standard deviation of a unit normal cut off at +-2: dividing by it restores the wanted variance.
_TRUNCATED_STD = 0.87962566103423978


def init_weight(weight: Tensor) -> Tensor:
    """Initialise a linear map in place as the authors' code does: variance scaling 1.0 over the fan-in.

    Truncated normal of variance 1 / fan-in, cut at two standard deviations (Haiku's VarianceScaling).

    Args:
        weight: (out, in).

    Returns:
        The same tensor.
    """
    std = sqrt(1 / weight.shape[1]) / _TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Build a Linear with the authors' initialisation and zero bias.

    Args:
        inputs: Input channels.
        outputs: Output channels.

    Returns:
        The module, (..., inputs) -> (..., outputs).
    """
    module = nn.Linear(inputs, outputs)
    init_weight(module.weight)
    nn.init.zeros_(module.bias)
    return module


class DenseBlock(nn.Module):
    """LN, Linear, GELU (erf), Linear, with a residual; hidden width 1x, as in the paper.

    Args:
        width: Latent width D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.expand = linear(width, width)
        self.project = linear(width, width)

    def forward(self, latents: Tensor) -> Tensor:
        """Update each latent on its own.

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
        self.query_key_value = linear(width, 3 * width)
        self.output = linear(width, width)
        self.dense = DenseBlock(width)

    def forward(self, latents: Tensor) -> Tensor:
        """Let the latents exchange information.

        Args:
            latents: (B, N, D).

        Returns:
            (B, N, D).
        """
        stacked: Tensor = self.query_key_value(self.norm(latents))
        batch, rows, _ = latents.shape
        query, key, value = stacked.view(batch, rows, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        result: Tensor = self.dense(latents + mixed)
        return result


class LearnedArrays(nn.Module):
    """Named parameters of which a step may need some only: all are given out, whatever the step.

    They begin as the authors' learned positions do: truncated normal, standard deviation 0.02.

    Args:
        shapes: Shape of each, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))

    def forward(self) -> dict[str, Tensor]:
        """All of them, each of any shape.

        Returns:
            Copies by name: ZeRO-3 takes a parameter's memory back when its module returns.
        """
        return {name: parameter.clone() for name, parameter in self.named_parameters()}


def no_effect(tensors: list[Tensor], like: Tensor) -> Tensor:
    """Zero that depends on the tensors, so that each gets a zero gradient instead of none.

    ZeRO stages treat a parameter without gradient differently, and ZeRO-3 replays the modules of the first
    step; so every parameter takes part in every forward pass, and what the result does not need enters by
    adding this.

    Args:
        tensors: Of any shape.
        like: Tensor that gives dtype and device when there are no tensors.

    Returns:
        Scalar 0.
    """
    total = like.new_zeros(())
    for tensor in tensors:
        total = total + tensor.sum()
    return 0 * total
