"""Cost of a configuration: parameters, FLOPs, and memory per rank, without allocating the model.

FLOPs count a multiplication and an addition as two, as the paper does, and count matrix products only: norms, softmax
and residuals are well below 1%. Shapes: B batch, M tokens, N latents, C token channels, D latent width.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import nn

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ModalityInput, tokens
from perceiver_dist.model.attention import CHANNEL_MULTIPLE, attention_path
from perceiver_dist.model.inputs import learned_positions, token_channels
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
        UserError: A modality is not configured, or none is.
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
        UserError: A modality is not configured, or none is.
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


def memory_per_rank(
    config: ModelConfig,
    heads: Mapping[str, int],
    *,
    zero_stage: Literal[0, 1, 2, 3],
    world_size: int,
    micro_batch: int,
    precision: Literal["fp32", "bf16"] = "bf16",
    device: str = "cpu",
) -> dict[str, int]:
    """Return the bytes that one rank needs for a micro-batch with all configured modalities.

    Model states are counted as in the ZeRO paper (arXiv 1910.02054, figure 1). Of P parameters and on W ranks,
    parameters and gradients take 2P bytes each in bf16 and 4P in fp32. The optimizer (Adam or LAMB, two moments) takes
    8P, and 4P more for its fp32 copy of the parameters in bf16. ZeRO stage 1 divides the optimizer by W, stage 2
    gradients too, stage 3 parameters too. Communication buffers and allocator fragmentation are not included.

    Activations are what autograd keeps between forward and backward. They are estimated from the tensors that each
    layer saves; temporary buffers of the running layer are not included.

    Args:
        config: The model's options.
        heads: Number of classes of each source.
        zero_stage: DeepSpeed's ZeRO stage.
        world_size: Number of ranks W.
        micro_batch: Samples per forward pass on a rank.
        precision: Precision of parameters and gradients.
        device: Type of the device, by which `cross_attention` "auto" is resolved.

    Returns:
        Bytes of "parameters", "gradients", "optimizer" and "activations".

    Raises:
        UserError: The model cannot be built, or zero_stage, world_size or micro_batch is out of range.
    """
    if zero_stage not in (0, 1, 2, 3) or world_size < 1 or micro_batch < 1:
        raise UserError(
            f"zero_stage {zero_stage}, world_size {world_size}, micro_batch {micro_batch}: the stage must be "
            "0 to 3, the others at least 1"
        )
    count = parameter_count(config, heads)
    value_bytes = 2 if precision == "bf16" else 4
    sizes = {
        "parameters": value_bytes * count,
        "gradients": value_bytes * count,
        "optimizer": (12 if precision == "bf16" else 8) * count,
    }
    divided_from_stage = {"parameters": 3, "gradients": 2, "optimizer": 1}
    per_rank = {
        name: -(-size // world_size) if zero_stage >= divided_from_stage[name] else size
        for name, size in sizes.items()
    }
    return per_rank | {"activations": micro_batch * _activation_bytes(config, value_bytes, device)}


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
        raise UserError(
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


def _activation_bytes(config: ModelConfig, value_bytes: int, device: str) -> int:
    """Return the bytes that one sample's forward pass saves for backward, counted in tensors (N, D) and (N, C)."""
    latent = config.latents * config.width * value_bytes
    query = config.latents * token_channels(config)
    factored = attention_path(config, device) != "dense"
    # 10: input, norm, query, key, value and result of attention; input, norm and 2 hidden tensors of the dense block.
    self_attend = 10 * latent
    # 6: input and norm of the query, and 4 of the dense block. 5: the query before and after the fold, the average
    # before the LayerNorm gain, and the inputs of value and output. 2: the query and result of attention itself, which
    # the factored paths keep in fp32.
    cross_attend = 6 * latent + query * (5 * value_bytes + 2 * (4 if factored else value_bytes))
    # A decoder keeps the latents and their normalised form; the tensors of its few queries are negligible.
    rest = _token_bytes(config, value_bytes, factored) + (2 * latent if config.readout == "decoder" else 0)
    if config.activation_checkpointing:
        layers = config.cross_attends + _self_attends(config)
        return layers * latent + max(self_attend, cross_attend) + rest
    return config.cross_attends * cross_attend + _self_attends(config) * self_attend + rest


def _token_bytes(config: ModelConfig, value_bytes: int, factored: bool) -> int:
    """Return the bytes of one sample's tokens as attention keeps them."""
    counts, specs = tokens_per_modality(config), config.modalities
    if factored:
        return sum(count * 4 * (specs[name].content_channels + 2) for name, count in counts.items())
    channels = token_channels(config)
    padded = channels + -channels % CHANNEL_MULTIPLE
    # With learned encodings or positions, backward also needs the fp32 array before normalisation.
    before = 4 * channels if len(specs) > 1 or learned_positions(config) else 0
    return sum(counts.values()) * (padded * value_bytes + before)
