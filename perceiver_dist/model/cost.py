"""What a configuration costs, computed without building it: parameters, FLOPs, memory.

FLOPs count a multiplication and an addition as two, as the paper does, and matrix products only: norms, softmax
and residuals are well below 1%.
"""

from collections.abc import Collection, Mapping
from typing import Literal

from perceiver_dist.errors import InternalError
from perceiver_dist.modalities import ModalityInput, tokens
from perceiver_dist.model.attention import CHANNEL_MULTIPLE, attention_path
from perceiver_dist.model.inputs import encoding_channels, learned_positions, token_channels
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.positions import position_channels, separates_by_axis


def parameter_count(config: ModelConfig, heads: Mapping[str, int]) -> int:
    """Number of trained values of `Perceiver(config, heads)`, exactly.

    Args:
        config: The model's options.
        heads: Number of classes of each source.

    Returns:
        Parameters; shared ones count once.

    Raises:
        UserError: No modality is configured.
    """
    width = config.width

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    dense_block = 2 * width + 2 * linear(width, width)

    def cross_attend(channels: int) -> int:
        norms = 2 * width + 2 * channels
        maps = linear(width, channels) + 2 * linear(channels, channels) + linear(channels, width)
        return norms + maps + dense_block

    self_attend = 2 * width + 4 * linear(width, width) + dense_block
    return (
        config.latents * width
        + sum(encoding_channels(config).values())
        + sum(places * channels for places, channels in learned_positions(config).values())
        + len(set(config.cross_attend_order)) * cross_attend(token_channels(config))
        + len(set(config.latent_block_order)) * config.self_attends_per_block * self_attend
        + (cross_attend(width) + len(heads) * width if config.readout == "decoder" else 0)
        + sum(linear(width, classes) for classes in heads.values())
    )


def tokens_per_modality(config: ModelConfig) -> dict[str, int]:
    """Tokens that one sample gives, by modality.

    Args:
        config: The model's options.

    Returns:
        M of every configured modality.
    """
    return {name: tokens(spec) for name, spec in config.modalities.items()}


def paper_flops(config: ModelConfig, modalities: Collection[str]) -> int:
    """FLOPs of one sample's forward pass as the papers formulate it, without the heads.

    Every cross-attend projects all tokens to keys and values; the paper's ImageNet model comes to 706.3e9
    (published: 707.2e9). A decoder projects all latents; it is counted with the query of one source.

    Args:
        config: The model's options.
        modalities: Names of the sample's modalities.

    Returns:
        FLOPs.

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
    """FLOPs of one sample's forward pass as this code computes it, without the heads.

    A decoder is counted with the query of one source.

    Args:
        config: The model's options.
        modalities: Names of the sample's modalities.
        device: Type of the device, which decides about `cross_attention` "auto".

    Returns:
        FLOPs.

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
    """Bytes one rank needs, for a micro-batch that has all configured modalities.

    With P parameters and W ranks, as the ZeRO paper (arXiv 1910.02054, figure 1) counts: parameters and
    gradients 2P bytes each in bf16, 4P in fp32; optimizer (Adam, LAMB: two moments) 8P, and 4P more for the
    fp32 copy in bf16. Stage 1 divides the optimizer by W, stage 2 gradients too, stage 3 parameters too.
    Communication buffers and what the allocator cannot use are not in it.

    Activations are what autograd keeps between forward and backward: an estimate, from the list of tensors
    each layer saves; temporary buffers of the running layer are not in it.

    Args:
        config: The model's options.
        heads: Number of classes of each source.
        zero_stage: DeepSpeed's ZeRO stage.
        world_size: Ranks W.
        micro_batch: Samples per forward pass on a rank.
        precision: Of the parameters.
        device: Type of the device, which decides about `cross_attention` "auto".

    Returns:
        Bytes under "parameters", "gradients", "optimizer" and "activations".

    Raises:
        UserError: No modality is configured.
        InternalError: zero_stage, world_size or micro_batch is out of range.
    """
    if zero_stage not in (0, 1, 2, 3) or world_size < 1 or micro_batch < 1:
        raise InternalError(
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
    """Channels times tokens of what one modality's tokens are multiplied with."""
    # Content has two channels more, see factored.py.
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
    """Of one cross-attend: query and output projection and the dense block."""
    width = config.width
    return 2 * queries * (2 * width * channels + 2 * width**2)


def _self_attends(config: ModelConfig) -> int:
    """How many latent layers run in one forward pass."""
    return config.cross_attends * config.latent_block_repeats * config.self_attends_per_block


def _latent_flops(config: ModelConfig) -> int:
    """Of all latent blocks: four projections, scores and their use, and the dense block."""
    rows, width = config.latents, config.width
    layer = 2 * rows * (4 + 2) * width**2 + 2 * 2 * rows**2 * width
    return _self_attends(config) * layer


def _activation_bytes(config: ModelConfig, value_bytes: int, device: str) -> int:
    """One sample's tensors saved for backward; per layer as listed, in units of (N, D) and (N, C)."""
    latent = config.latents * config.width * value_bytes
    query = config.latents * token_channels(config)
    factored = attention_path(config, device) != "dense"
    # Norm, 4 tensors of the dense block; queries, keys, values and result of attention, its input.
    self_attend = 10 * latent
    # Norm and input of the query, dense block; query before and after the fold, inputs of value and output,
    # attended before LN gain; and attention's own query and result, which the factored path has in fp32.
    cross_attend = 6 * latent + query * (5 * value_bytes + 2 * (4 if factored else value_bytes))
    # A decoder keeps the latents, plain and normalised; what its queries add is small.
    rest = _token_bytes(config, value_bytes, factored) + (2 * latent if config.readout == "decoder" else 0)
    if config.activation_checkpointing:
        layers = config.cross_attends + _self_attends(config)
        return layers * latent + max(self_attend, cross_attend) + rest
    return config.cross_attends * cross_attend + _self_attends(config) * self_attend + rest


def _token_bytes(config: ModelConfig, value_bytes: int, factored: bool) -> int:
    """One sample's tokens as attention keeps them."""
    counts, specs = tokens_per_modality(config), config.modalities
    if factored:
        return sum(count * 4 * (specs[name].content_channels + 2) for name, count in counts.items())
    channels = token_channels(config)
    padded = channels + -channels % CHANNEL_MULTIPLE
    # Where encodings or positions learn, the fp32 array before normalisation is kept too.
    before = 4 * channels if len(specs) > 1 or learned_positions(config) else 0
    return sum(counts.values()) * (padded * value_bytes + before)
