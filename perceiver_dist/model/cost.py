"""Cost of a configuration: parameters and FLOPs, without allocating the model.

FLOPs count a multiplication and an addition as two, as the paper does, and count matrix products only: norms, softmax
and residuals are well below 1%. Shapes: B batch, M tokens, N latents, C token channels, D latent width.
"""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from perceiver_dist.errors import InternalError
from perceiver_dist.modalities import ModalityInput, tokens
from perceiver_dist.model.attention import CHANNEL_MULTIPLE, attention_path
from perceiver_dist.model.inputs import token_channels
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.positions import position_channels, separates_by_axis


def parameter_count(config: ModelConfig, heads: Mapping[str, int]) -> int:
    """Return the number of parameters of `Perceiver(config, heads)`; shared ones count once.

    Args:
        config: The model's options.
        heads: Number of classes of each source.

    Raises:
        UserError: The model cannot be built.
    """
    with torch.device("meta"):
        model = _WithoutTokenizers(config, heads)
    return sum(parameter.numel() for parameter in model.parameters())


class _WithoutTokenizers(Perceiver):
    """A Perceiver without its tokenizers, which have no parameters.

    Computing their tables on the meta device would import torch's compiler: 0.8 s and 140 MB, in torch 2.14.
    """

    def _build_tokenizers(self) -> nn.ModuleDict:
        return nn.ModuleDict()


def tokens_per_modality(config: ModelConfig) -> dict[str, int]:
    """Return the number of tokens M of one sample, for each configured modality.

    Args:
        config: The model's options.
    """
    return {name: tokens(spec) for name, spec in config.modalities.items()}


def paper_flops(config: ModelConfig, modalities: Collection[str]) -> int:
    """Return the FLOPs of one sample's forward pass as the papers formulate it, without the heads.

    Every cross-attend projects all tokens to keys and values. The paper's ImageNet model has 706.3e9 FLOPs by this
    count (published: 707.2e9). A decoder projects all latents; it is counted with the query of one source.

    Args:
        config: The model's options.
        modalities: Names of the sample's modalities.

    Raises:
        UserError: No modality is configured.
        InternalError: One of `modalities` is not configured.
    """
    count, channels = sum(_selected_tokens(config, modalities).values()), token_channels(config)

    def cross_attend(queries: int, tokens: int, channels: int) -> int:
        projections = 2 * 2 * tokens * channels**2
        attention = 2 * 2 * queries * tokens * channels
        return projections + attention + _query_output_flops(config, queries, channels)

    decoder = cross_attend(1, config.latents, config.width) if config.readout == "decoder" else 0
    encoder = config.cross_attends * cross_attend(config.latents, count, channels)
    return encoder + _latent_flops(config) + decoder


def forward_flops(config: ModelConfig, modalities: Collection[str], device: str = "cpu") -> int:
    """Return the FLOPs of one sample's forward pass as this code computes it, without the heads.

    A decoder is counted with the query of one source.

    Args:
        config: The model's options.
        modalities: Names of the sample's modalities.
        device: Type of the device, by which `cross_attention` "auto" is resolved.

    Raises:
        UserError: No modality is configured.
        InternalError: One of `modalities` is not configured.
    """
    counts, channels = _selected_tokens(config, modalities), token_channels(config)
    path = attention_path(config, device)
    if path == "dense":
        padded = channels + -channels % CHANNEL_MULTIPLE
        width_times_tokens = sum(counts.values()) * padded
    else:
        width_times_tokens = sum(
            _factored_width_times_tokens(config.modalities[name], path == "separable") for name in counts
        )

    def cross_attend(queries: int, width_times_tokens: int, channels: int) -> int:
        attention = 2 * 2 * queries * width_times_tokens
        folds = 2 * 2 * queries * channels**2
        return attention + folds + _query_output_flops(config, queries, channels)

    has_decoder = config.readout == "decoder"
    decoder = cross_attend(1, config.latents * config.width, config.width) if has_decoder else 0
    encoder = config.cross_attends * cross_attend(config.latents, width_times_tokens, channels)
    return encoder + _latent_flops(config) + decoder


def _factored_width_times_tokens(spec: ModalityInput, by_axis: bool) -> int:
    """Return the sum of channels over all key rows that a query is multiplied with, for one modality."""
    # The features u have two channels more than content, see factored.py.
    content = tokens(spec) * (spec.content_channels + 2)
    if by_axis and separates_by_axis(spec):
        return content + sum(spec.grid) * (2 * spec.bands + 1)
    return content + tokens(spec) * position_channels(spec)


def _selected_tokens(config: ModelConfig, modalities: Collection[str]) -> dict[str, int]:
    counts = tokens_per_modality(config)
    unknown = sorted(set(modalities) - set(counts))
    if unknown:
        raise InternalError(
            f"modalities {unknown} are not configured, the model reads {', '.join(counts) or 'nothing'}"
        )
    return {name: count for name, count in counts.items() if name in modalities}


def _query_output_flops(config: ModelConfig, queries: int, channels: int) -> int:
    """Return the FLOPs of query projection, output projection and dense block of one cross-attend."""
    width = config.width
    return 2 * queries * (2 * width * channels + 2 * width**2)


def _self_attends(config: ModelConfig) -> int:
    """Return the number of latent layers that run in one forward pass."""
    return config.cross_attends * config.latent_block_repeats * config.self_attends_per_block


def _latent_flops(config: ModelConfig) -> int:
    """Return the FLOPs of all latent blocks: four projections, scores, weighted sums, and the dense block."""
    rows, width = config.latents, config.width
    layer = 2 * rows * (4 + 2) * width**2 + 2 * 2 * rows**2 * width
    return _self_attends(config) * layer
