"""Tokenizers: decoded arrays become tokens of content, position and modality encoding, with LayerNorm statistics.

Shapes: B batch, M tokens, C = c + P + E channels of a token, in this order:

    [content | raw positions | sin of every axis | cos of every axis | modality encoding]

This is the channel order of the published Perceiver IO weights (RGB, (y, x), sin y, sin x, cos y, cos x). A learned
position is one vector in place of the three position parts. The parts are stored separately, because content depends
on sample and token, position on the token only, and encoding on neither; `factored.py` saves work with that. The tokens
of a point cloud have no position channels: their Fourier features depend on the sample, so they are content.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from perceiver_dist.errors import InternalError, UserError
from perceiver_dist.modalities import (
    MODALITIES,
    AudioInput,
    ImageInput,
    ModalityInput,
    PointCloudInput,
    tokens,
)
from perceiver_dist.model.mel import log_mel, mel_filters
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.positions import (
    axis_features,
    fourier_features,
    point_features,
    position_channels,
    separates_by_axis,
    token_order,
)

LAYER_NORM_EPS = 1e-5
"""Epsilon of every LayerNorm: the default of the authors' library (Haiku) and of torch."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, scaled to [0, 1]: the values in common use, also those
of the published Perceiver IO weights."""


def encoding_channels(config: ModelConfig) -> dict[str, int]:
    """Return the length of each modality's learned encoding, which pads all modalities to one channel count C.

    Args:
        config: The model's options.

    Returns:
        Channels by modality name: all 0 with one modality, at least `modality_channels` with several.

    Raises:
        UserError: No modality is configured.
    """
    if not config.modalities:
        options = ", ".join(f"model.{name}" for name in MODALITIES)
        raise UserError(f"model has no input: set at least one of {options}")
    own = {name: spec.content_channels + position_channels(spec) for name, spec in config.modalities.items()}
    smallest = config.modality_channels if len(own) > 1 else 0
    return {name: max(own.values()) + smallest - channels for name, channels in own.items()}


def learned_positions(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shapes of the learned positions.

    Args:
        config: The model's options.

    Returns:
        (M, P) of each modality with learned positions, by name.
    """
    return {
        name: (tokens(spec), position_channels(spec))
        for name, spec in config.modalities.items()
        if spec.position == "learned"
    }


def token_channels(config: ModelConfig) -> int:
    """Return the channels C of one token: content, position and, with several modalities, encoding.

    Args:
        config: The model's options.

    Returns:
        C, the same for all modalities.

    Raises:
        UserError: No modality is configured.
    """
    name, encoding = next(iter(encoding_channels(config).items()))
    spec = config.modalities[name]
    return spec.content_channels + position_channels(spec) + encoding


def patchify(array: Tensor, spec: ModalityInput) -> Tensor:
    """Cut each sample into the patches (or segments) of the modality's grid.

    Args:
        array: (B, *spec.array_shape).
        spec: The modality's input.

    Returns:
        (B, M, c) of the same dtype: tokens row-major over the grid; within a token row-major over the patch,
        colour channels last.
    """
    axes = len(spec.grid)
    steps = [size // count for size, count in zip(spec.array_shape, spec.grid, strict=False)]
    split = [size for pair in zip(spec.grid, steps, strict=True) for size in pair]
    blocks = array.reshape(array.shape[0], *split, *spec.array_shape[axes:])
    grid_axes, patch_axes = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    blocks = blocks.permute(0, *grid_axes, *patch_axes, *range(2 * axes + 1, blocks.dim()))
    return blocks.reshape(array.shape[0], prod(spec.grid), spec.content_channels)


@dataclass(frozen=True)
class Tokens:
    """One modality's tokens of a batch, in parts; fp32, or fp64 in an fp64 model.

    Attributes:
        content: (B, M, c) in [-1, 1], or near it if pixel_scale is "imagenet" or points are not normalised.
        position: (M, P), the same for the whole batch.
        encoding: (E,), the same for all tokens; E is 0 when one modality is configured.
        mean: (B, M), mean of a token's C = c + P + E channels.
        rstd: (B, M), 1 / sqrt(variance of the C channels + eps).
        axes: (size, 2K + 1) for each axis of the grid, if positions separate by axis, else empty.
    """

    content: Tensor
    position: Tensor
    encoding: Tensor
    mean: Tensor
    rstd: Tensor
    axes: tuple[Tensor, ...]

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels (c, P, E) of content, position and encoding."""
        return (self.content.shape[-1], self.position.shape[-1], self.encoding.shape[-1])


class Tokenizer(nn.Module):
    """Module without parameters that turns one modality's arrays into `Tokens`.

    Args:
        name: The modality's name, for error messages.
        spec: The modality's input.
    """

    order: Tensor | None

    def __init__(self, name: str, spec: ModalityInput) -> None:
        super().__init__()
        self.name = name
        self.spec = spec
        order = None if spec.permutation_seed is None else token_order(spec)
        self.register_buffer("order", order, persistent=False)
        fixed = _fixed_arrays(spec)
        # Names of the buffers that keep at least fp32, see `_apply`.
        self._exact = tuple(fixed)
        for name, features in fixed.items():
            self.register_buffer(name, features, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Tokenizer":
        # module.bfloat16() casts buffers too. Positions stay in fp32: LayerNorm statistics are computed from them.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not annotate it
        if any(self.get_buffer(name).itemsize < torch.float32.itemsize for name in self._exact):
            for name, features in _fixed_arrays(self.spec).items():
                setattr(self, name, features.to(self.get_buffer(name).device))
        return self

    def forward(
        self,
        array: Tensor,
        encoding: Tensor | None = None,
        learned_position: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> Tokens:
        """Scale, patchify and reorder one batch of arrays, and compute the tokens' LayerNorm statistics.

        Args:
            array: (B, *spec.array_shape): uint8, scaled to x / 127.5 - 1 or as spec.pixel_scale says; int16, scaled to
                x / 32768; or fp32 coordinates of points.
            encoding: (E,) learned modality encoding; None for none.
            learned_position: (M, P), if the modality's positions are learned; row i belongs to place i of the fixed
                order.
            masked: (B, *spec.grid) bool, tokens whose content is replaced by the sample's mean content; None for none.

        Returns:
            The tokens. Their statistics are sums over the parts, so the C channels are never concatenated.

        Raises:
            InternalError: The array does not have the modality's shape or dtype, or learned positions are missing.
        """
        expected_dtype = getattr(torch, self.spec.array_dtype)
        if tuple(array.shape[1:]) != self.spec.array_shape or array.dtype != expected_dtype:
            raise InternalError(
                f"{self.name}: array of {array.dtype} and shape (B, *{tuple(array.shape[1:])}), expected "
                f"{expected_dtype} and (B, *{self.spec.array_shape}): decode to model.{self.name}'s sizes"
            )
        position = learned_position if self.spec.position == "learned" else self.get_buffer("position")
        if position is None:
            raise InternalError(
                f"{self.name}: position is 'learned', but learned_position is missing: pass an (M, P) tensor"
            )
        position = position.to(torch.promote_types(position.dtype, torch.float32))
        content = self._content(array, position.dtype)
        if masked is not None:
            hidden = self._ordered(masked.flatten(1)[..., None])
            content = torch.where(hidden, content.mean(1, keepdim=True), content)
        encoding = position.new_zeros(0) if encoding is None else encoding.to(position.dtype)
        parts = (content, position, encoding)
        channels = sum(part.shape[-1] for part in parts)
        # Variance as E[x^2] - E[x]^2, summed over the parts. Little cancels, since values are near [-1, 1].
        mean = sum((part.sum(-1) for part in parts), start=torch.zeros_like(content[..., 0])) / channels
        square = sum((part.square().sum(-1) for part in parts), start=torch.zeros_like(mean)) / channels
        rstd = (square - mean.square() + LAYER_NORM_EPS).rsqrt()
        axes = tuple(self.get_buffer(name) for name in self._exact if name.startswith("axis_"))
        return Tokens(content, position, encoding, mean, rstd, axes)

    def _content(self, array: Tensor, dtype: torch.dtype) -> Tensor:
        """Map (B, *spec.array_shape) to (B, M, c)."""
        if isinstance(self.spec, PointCloudInput):
            return point_features(array.to(dtype), self.spec)
        if isinstance(self.spec, AudioInput) and self.spec.mel_bands is not None:
            levels = log_mel(array.to(dtype) / 32768, self.spec.segment, self.get_buffer("mel_filters"))
            return self._ordered(levels.flatten(1)[..., None])
        return _scaled(self._ordered(patchify(array, self.spec)).to(dtype), self.spec)

    def _ordered(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, M, c) in their fixed order."""
        return tokens if self.order is None else tokens[:, self.order]


def _scaled(patches: Tensor, spec: ModalityInput) -> Tensor:
    """Scale integer values, given as floats (B, M, c), to numbers around 0."""
    if spec.array_dtype == "int16":
        return patches / 32768
    if not isinstance(spec, ImageInput) or spec.pixel_scale == "symmetric":
        return patches / 127.5 - 1
    mean, std = (patches.new_tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    colours = patches.view(*patches.shape[:-1], -1, len(IMAGENET_MEAN))
    return ((colours / 255 - mean) / std).flatten(-2)


def _fixed_arrays(spec: ModalityInput) -> dict[str, Tensor]:
    """Return the constant arrays by name: "position" (M, P), "axis_0" (size, 2K + 1), ..., and "mel_filters"."""
    arrays: dict[str, Tensor] = {}
    if isinstance(spec, AudioInput) and spec.mel_bands is not None:
        arrays["mel_filters"] = mel_filters(spec.sample_rate, 2 * spec.segment, spec.mel_bands)
    if spec.position == "learned":
        return arrays
    features = fourier_features(spec)
    arrays["position"] = features if spec.permutation_seed is None else features[token_order(spec)]
    along = axis_features(spec) if separates_by_axis(spec) else []
    return arrays | {f"axis_{number}": table for number, table in enumerate(along)}


@dataclass(frozen=True)
class Presence:
    """Masks of the modalities that each sample has, of the K modalities of a step.

    Attributes:
        visible: (B, K) bool, whether attention sees the modality. All true for a sample without any modality, so
            that its softmax is defined; `nonempty` then removes the result.
        nonempty: (B, 1, 1) bool, false for a sample without any modality.
    """

    visible: Tensor
    nonempty: Tensor


def read_presence(
    present: Mapping[str, Tensor], names: list[str], batch: int, device: torch.device
) -> Presence | None:
    """Combine the presence masks of a step.

    Args:
        present: (B,) bool by modality; every sample has a modality that is not named. On the CPU whatever the model's
            device, so that nothing waits for the device; masks on the device work too.
        names: The step's modalities, in the order of the tokens.
        batch: B.
        device: Device of the result.

    Returns:
        The presence, or None if no sample lacks a modality: attention then needs no mask.

    Raises:
        InternalError: A mask is not bool of shape (B,).
    """
    masks = {name: present[name] for name in names if name in present}
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != (batch,):
            raise InternalError(
                f"present[{name!r}] is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool of "
                f"shape ({batch},): one value per sample"
            )
    if not masks:
        return None
    everywhere = torch.ones_like(next(iter(masks.values())))
    visible = torch.stack([masks.get(name, everywhere) for name in names], dim=1)
    # An exported graph serves batches with and without missing modalities, so it always has the mask.
    if not torch.compiler.is_exporting() and bool(visible.all()):
        return None
    if visible.device != device:
        # torch keeps pinned memory for reuse, so this allocates once.
        visible = (visible.pin_memory() if device.type == "cuda" else visible).to(device, non_blocking=True)
    nonempty = visible.any(dim=1, keepdim=True)
    return Presence(visible | ~nonempty, nonempty[:, :, None])
