"""Reference Perceiver, written as in the paper, for tests.

One sample at a time, with every token built and its keys and values projected. Also small configurations and inputs.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import strategies as st
from torch import Tensor

from perceiver_dist.modalities import (
    MODALITIES,
    AudioInput,
    ImageInput,
    ModalityInput,
    PointCloudInput,
    VideoInput,
)
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver

IMAGE = ImageInput(height=4, width=6, channels=3, patch=2, bands=3)
AUDIO = AudioInput(samples=40, segment=8, bands=2, max_frequency=11.0)
VIDEO = VideoInput(frames=4, height=4, width=6, channels=1, patch=(2, 2, 3), bands=1)
SMALL: dict[str, Any] = {
    "image": IMAGE,
    "audio": AUDIO,
    "video": VIDEO,
    "points": PointCloudInput(points=7, bands=2, max_frequency=50.0),
}
"""One small input of every modality, as arguments of `ModelConfig`."""
HEADS = {"clips": 5, "pictures": 3}
Parameters = Mapping[str, Tensor]


@st.composite
def small_configs(draw: st.DrawFn, /, **fixed: object) -> ModelConfig:
    """Draw any sharing rules, any non-empty set of modalities with any positions and orders, and odd sizes."""
    names = draw(st.sets(st.sampled_from(MODALITIES), min_size=1))
    position = st.fixed_dictionaries(
        {
            "position": st.sampled_from(["fourier", "learned"]),
            "position_channels": st.integers(1, 3),
            "permutation_seed": st.none() | st.integers(0, 3),
        }
    )
    heads = draw(st.integers(1, 3))
    options: dict[str, Any] = {
        "latents": draw(st.integers(1, 5)),
        "width": heads * draw(st.integers(4, 6)),
        "heads": heads,
        "cross_attends": draw(st.integers(1, 3)),
        "latent_block_repeats": draw(st.integers(1, 2)),
        "self_attends_per_block": draw(st.integers(1, 2)),
        "share_cross_attends": draw(st.sampled_from(["all_but_first", "all", "none"])),
        "share_latent_blocks": draw(st.booleans()),
        "readout": draw(st.sampled_from(["mean", "decoder"])),
        "modality_channels": draw(st.integers(1, 4)),
        "activation_checkpointing": draw(st.booleans()),
        **{
            name: SMALL[name] if name == "points" else replace(SMALL[name], **draw(position))
            for name in sorted(names)
        },
    }
    return ModelConfig(**(options | fixed))


def random_arrays(config: ModelConfig, batch: int) -> dict[str, Tensor]:
    """Return random bytes, samples and coordinates for every configured modality."""
    generator = torch.Generator().manual_seed(batch)
    arrays = {}
    for name, spec in config.modalities.items():
        if isinstance(spec, PointCloudInput):
            arrays[name] = torch.rand(batch, *spec.array_shape, generator=generator) * 2 - 1
            continue
        low, high = (0, 256) if spec.array_dtype == "uint8" else (-32768, 32768)
        dtype = getattr(torch, spec.array_dtype)
        arrays[name] = torch.randint(low, high, (batch, *spec.array_shape), generator=generator, dtype=dtype)
    return arrays


def random_model(config: ModelConfig, heads: dict[str, int] = HEADS) -> Perceiver:
    """Return a model whose biases are not 0 and gains not 1, so that omitting one changes results."""
    torch.manual_seed(0)
    model = Perceiver(config, heads)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def content_of(sample: Tensor, spec: ModalityInput) -> Tensor:
    """Return the flattened patch at each place of the grid, or all features of points: (M, c)."""
    if isinstance(spec, PointCloudInput):
        rows = [waves(point, [spec.max_frequency] * 3, spec.bands) for point in sample.tolist()]
        return torch.tensor(rows, dtype=torch.float64)
    steps = [size // count for size, count in zip(spec.array_shape, spec.grid, strict=False)]
    patches = []
    for place in itertools.product(*(range(count) for count in spec.grid)):
        patch = sample[tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, steps, strict=True))]
        patches.append(patch.flatten().double())
    content = torch.stack(patches)
    return content / 127.5 - 1 if sample.dtype == torch.uint8 else content / 32768


def position_of(spec: ModalityInput) -> Tensor:
    """Return raw positions, then sines, then cosines: (M, P)."""
    if isinstance(spec, PointCloudInput):
        return torch.empty(spec.points, 0, dtype=torch.float64)
    rows = []
    for place in itertools.product(*(range(count) for count in spec.grid)):
        axes = list(zip(place, spec.grid, strict=True))
        raw = [-1 + 2 * index / (count - 1) if count > 1 else -1.0 for index, count in axes]
        rows.append(waves(raw, [spec.max_frequency or count for count in spec.grid], spec.bands))
    # By definition the features are computed in fp64 and stored in fp32.
    return torch.tensor(rows, dtype=torch.float64).float().double()


def waves(place: list[float], twice_highest: list[float], bands: int) -> list[float]:
    """Return one token's raw position, sines and cosines, each axis by axis."""
    sines, cosines = [], []
    for x, mu in zip(place, twice_highest, strict=True):
        for band in range(bands):
            frequency = 1 + (mu / 2 - 1) * band / (bands - 1) if bands > 1 else 1.0
            sines.append(math.sin(math.pi * frequency * x))
            cosines.append(math.cos(math.pi * frequency * x))
    return place + sines + cosines


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], gain, bias, eps=1e-5)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.T / math.sqrt(query.shape[-1])).softmax(-1) @ value


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"])


def dense(p: Parameters, name: str, x: Tensor) -> Tensor:
    hidden = linear(p, f"{name}.expand", norm(p, f"{name}.norm", x))
    return x + linear(p, f"{name}.project", F.gelu(hidden))


def cross_attend(p: Parameters, name: str, x: Tensor, tokens: Tensor | None) -> Tensor:
    """Cross-attend latents (N, D) to tokens (M, C); without tokens, to one whose normalised value is 0."""
    gain, bias = p[f"{name}.token_gain"], p[f"{name}.token_bias"]
    normalised = bias[None] if tokens is None else layer_norm(tokens, gain, bias)
    query = linear(p, f"{name}.query", norm(p, f"{name}.latent_norm", x))
    # The model stores W_k as torch does, (out, in).
    key = normalised @ p[f"{name}.key_weight"].T + p[f"{name}.key_bias"]
    value = linear(p, f"{name}.value", normalised)
    return dense(p, f"{name}.dense", x + linear(p, f"{name}.output", attention(query, key, value)))


def self_attend(p: Parameters, name: str, x: Tensor, heads: int) -> Tensor:
    query, key, value = linear(p, f"{name}.query_key_value", norm(p, f"{name}.norm", x)).chunk(3, dim=-1)
    pieces = zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True)
    mixed = torch.cat([attention(*piece) for piece in pieces], dim=-1)
    return dense(p, f"{name}.dense", x + linear(p, f"{name}.output", mixed))


def tokens_of(
    p: Parameters, config: ModelConfig, arrays: Parameters, present: Parameters, row: int
) -> Tensor | None:
    """Return the tokens of the modalities that one sample has: (M, C)."""
    parts = []
    for name in arrays:
        if name in present and not present[name][row]:
            continue
        spec = config.modalities[name]
        content, learned = content_of(arrays[name][row], spec), p.get(f"positions.{name}")
        if spec.permutation_seed is None:
            order = torch.arange(len(content))
        else:
            generator = torch.Generator().manual_seed(spec.permutation_seed)
            order = torch.randperm(len(content), generator=generator)
        channels = [content[order], position_of(spec)[order] if learned is None else learned]
        if len(config.modalities) > 1:
            channels.append(p[f"encodings.{name}"].expand(len(channels[0]), -1))
        parts.append(torch.cat(channels, dim=-1))
    return torch.cat(parts) if parts else None


def reference(
    p: Parameters, config: ModelConfig, arrays: Parameters, present: Parameters, source: str
) -> Tensor:
    """Return logits (B, classes) from the named parameters of a `Perceiver`, in fp64."""
    logits = []
    for row in range(len(next(iter(arrays.values())))):
        tokens, x = tokens_of(p, config, arrays, present, row), p["latents"]
        for step in range(config.cross_attends):
            cross = {"all": 0, "all_but_first": min(step, 1), "none": step}[config.share_cross_attends]
            block = 0 if config.share_latent_blocks else step
            x = cross_attend(p, f"cross_attends.{cross}", x, tokens)
            for layer in [*range(config.self_attends_per_block)] * config.latent_block_repeats:
                x = self_attend(p, f"latent_blocks.{block}.{layer}", x, config.heads)
        if config.readout == "decoder":
            x = cross_attend(p, "decoder.cross_attend", p[f"decoder.queries.{source}"][None], x)
        logits.append(linear(p, f"heads.{source}", x.mean(0)))
    return torch.stack(logits)
