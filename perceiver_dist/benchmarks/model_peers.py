"""The same model in other libraries, for `jobs/benchmark.py model`; `make benchmark-model` installs them.

The other libraries get finished tokens with position features, so that only their attention is timed. `transformers`
gets images, and keeps position features between passes as this project does.
"""

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from perceiver_dist.model.attention import CrossAttend
from perceiver_dist.model.compilation import compile_layers
from perceiver_dist.model.cost import forward_flops, paper_flops
from perceiver_dist.model.inputs import token_channels
from perceiver_dist.model.layers import DenseBlock, SelfAttend
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.transformers_layout import to_transformers

SOURCE = "benchmark"
"""Name of the only source, and so of the head."""

Contender = Callable[[Mapping[str, Tensor]], Tensor]
"""Function from arrays (B, *array_shape) by modality to logits (B, classes)."""


CONTENDERS = (
    "separable", "separable, compiled", "factored", "dense", "perceiver-io", "transformers", "perceiver-pytorch",
)  # fmt: skip
"""This project's cross-attention paths, the first also with compiled latent layers, and other libraries."""

GPU_CONTENDERS = (*CONTENDERS[:4], "dense, compiled", *CONTENDERS[4:])
"""Contenders on a GPU, where compiling the latent layers pays with either path."""

OTHER_WEIGHTS = ("perceiver-pytorch",)
"""Contenders that cannot be given the same weights, so that their logits differ."""

OTHER_LIBRARIES = {
    "perceiver-io": "perceiver",
    "perceiver-pytorch": "perceiver_pytorch",
    "transformers": "transformers",
}
"""Contenders that are other libraries, with their Python modules."""


def computed_flops(name: str, config: ModelConfig, device: str) -> int:
    """Return the FLOPs of the products in one sample's forward pass of a contender.

    Args:
        name: One of `CONTENDERS` or `GPU_CONTENDERS`. Other libraries compute what the paper formulates.
        config: The model's options.
        device: Type of the device.
    """
    if name in OTHER_LIBRARIES:
        return paper_flops(config, config.modalities)
    return forward_flops(_with_path(config, name), config.modalities, device)


def _with_path(config: ModelConfig, name: str) -> ModelConfig:
    """Return the configuration with the cross-attention of one of this project's contenders."""
    path = name.partition(", ")[0]
    return replace(config, cross_attention=path)  # type: ignore[arg-type] # one of the three, see CONTENDERS


def is_possible(name: str, config: ModelConfig) -> bool:
    """Return whether a contender is installed here and supports the configuration.

    Args:
        name: One of `CONTENDERS`.
        config: The model's options.
    """
    if name.endswith(", compiled"):
        # torch.compile generates C++ for CPUs.
        return torch.cuda.is_available() or shutil.which("g++") is not None
    if name not in OTHER_LIBRARIES:
        return True
    # transformers has only the later recipe, with a decoder; the others have no such decoder.
    has_it = config.readout == ("decoder" if name == "transformers" else "mean")
    return has_it and importlib.util.find_spec(OTHER_LIBRARIES[name]) is not None


def build(name: str, config: ModelConfig, classes: int, device: str) -> tuple[Contender, nn.Module]:
    """Build a contender with the weights that seed 0 gives this project's model, unless it is in `OTHER_WEIGHTS`.

    Args:
        name: One of `CONTENDERS`, for which `is_possible` is true.
        config: The model's options: one modality, weights shared as on ImageNet.
        classes: Number of classes.
        device: Device of the model.

    Returns:
        The function from arrays to logits, and the module with the parameters.

    Raises:
        ImportError: The library is not installed.
    """
    torch.manual_seed(0)
    ours = Perceiver(config, {SOURCE: classes}).to(device)
    if name == "transformers":
        return _transformers(ours)
    if name not in OTHER_LIBRARIES:
        ours.config = _with_path(config, name)
        if name.endswith(", compiled"):
            compile_layers(ours)
        return (lambda arrays: ours(arrays, {}, SOURCE)), ours
    peer = _perceiver_io(ours) if name == "perceiver-io" else _perceiver_pytorch(config, classes)
    peer = peer.to(device)
    tokens = _TokensOf(ours)
    return (lambda arrays: peer(tokens(arrays))), peer


class _TokensOf:
    """Function from arrays to tokens (B, M, C) before normalisation, which caches its last result."""

    def __init__(self, model: Perceiver) -> None:
        [(self._modality, self._tokenizer)] = model.tokenizers.items()
        self._cached: tuple[Tensor, Tensor] | None = None

    def __call__(self, arrays: Mapping[str, Tensor]) -> Tensor:
        array = arrays[self._modality]
        if self._cached is None or self._cached[0] is not array:
            tokens = self._tokenizer(array)
            position = tokens.position.expand(len(array), -1, -1)
            self._cached = (array, torch.cat([tokens.content, position], dim=-1))
        return self._cached[1]


class _MeanAndHead(nn.Module):
    """The paper's readout after an encoder that returns latents (B, N, D)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, M, C) to (B, classes)."""
        latents: Tensor = self.encoder(tokens)
        logits: Tensor = self.head(latents.mean(dim=1))
        return logits


def _perceiver_io(ours: Perceiver) -> nn.Module:
    """Build the model of the library perceiver-io (krasserm), the only one with the paper's weight sharing."""
    core: Any = importlib.import_module("perceiver.model.core.modules")
    config, channels = ours.config, token_channels(ours.config)

    class Tokens(core.InputAdapter):  # type: ignore[misc] # the library has no types
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens

    encoder = core.PerceiverEncoder(
        Tokens(channels),
        num_latents=config.latents,
        num_latent_channels=config.width,
        num_cross_attention_heads=1,
        num_cross_attention_qk_channels=channels,
        num_cross_attention_layers=config.cross_attends,
        num_self_attention_heads=config.heads,
        num_self_attention_layers_per_block=config.self_attends_per_block,
        num_self_attention_blocks=config.cross_attends,
    )
    with torch.no_grad():
        encoder.latent.copy_(ours.latents)
        _copy_cross_attend(encoder.cross_attn_1, ours.cross_attends[0])
        if len(ours.cross_attends) > 1:
            _copy_cross_attend(encoder.cross_attn_n, ours.cross_attends[1])
        for theirs, own in zip(encoder.self_attn_1, ours.latent_blocks[0].children(), strict=True):
            _copy_self_attend(theirs, own)
    return _MeanAndHead(encoder, ours.heads[SOURCE])


def _copy_cross_attend(theirs: Any, ours: Any) -> None:
    own: CrossAttend = ours
    attend = theirs[0].module
    _copy(attend.q_norm, own.latent_norm.weight, own.latent_norm.bias)
    _copy(attend.kv_norm, own.token_gain, own.token_bias)
    _copy(attend.attention.q_proj, own.query.weight, own.query.bias)
    _copy(attend.attention.k_proj, own.key_weight, own.key_bias)
    _copy(attend.attention.v_proj, own.value.weight, own.value.bias)
    _copy(attend.attention.o_proj, own.output.weight, own.output.bias)
    _copy_dense(theirs[1].module, own.dense)


def _copy_self_attend(theirs: Any, ours: Any) -> None:
    own: SelfAttend = ours
    attend = theirs[0].module
    _copy(attend.norm, own.norm.weight, own.norm.bias)
    weights, biases = own.query_key_value.weight.chunk(3), own.query_key_value.bias.chunk(3)
    for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        _copy(getattr(attend.attention, name), weight, bias)
    _copy(attend.attention.o_proj, own.output.weight, own.output.bias)
    _copy_dense(theirs[1].module, own.dense)


def _copy_dense(theirs: Any, ours: DenseBlock) -> None:
    norm, expand, _, project = theirs
    _copy(norm, ours.norm.weight, ours.norm.bias)
    _copy(expand, ours.expand.weight, ours.expand.bias)
    _copy(project, ours.project.weight, ours.project.bias)


def _copy(module: Any, weight: Tensor, bias: Tensor) -> None:
    module.weight.copy_(weight)
    module.bias.copy_(bias)


def _transformers(ours: Perceiver) -> tuple[Contender, nn.Module]:
    """Build the model of the library transformers, by `perceiver_dist.model.transformers_layout`."""
    library: Any = importlib.import_module("transformers")
    weights, sizes = to_transformers(ours.state_dict(), ours.config, SOURCE)
    model: Any = library.PerceiverForImageClassificationFourier(library.PerceiverConfig(**sizes))
    model.load_state_dict(weights)
    # eval(): its attention has dropout in training mode by default, this project has none.
    model = model.eval().to(ours.latents.device)

    def compute(arrays: Mapping[str, Tensor]) -> Tensor:
        pixels = arrays["image"].permute(0, 3, 1, 2) / 127.5 - 1
        logits: Tensor = model(pixels).logits
        return logits

    return compute, model


def _perceiver_pytorch(config: ModelConfig, classes: int) -> nn.Module:
    """Build the model of the library perceiver-pytorch (lucidrains).

    Its dense blocks are wider and gated, and it ties weights after the first block.
    """
    library: Any = importlib.import_module("perceiver_pytorch")
    channels = token_channels(config)
    model: nn.Module = library.Perceiver(
        num_freq_bands=0,
        max_freq=1.0,
        depth=config.cross_attends,
        input_channels=channels,
        input_axis=1,
        fourier_encode_data=False,
        num_latents=config.latents,
        latent_dim=config.width,
        cross_heads=1,
        cross_dim_head=channels,
        latent_heads=config.heads,
        latent_dim_head=config.width // config.heads,
        num_classes=classes,
        weight_tie_layers=True,
        self_per_cross_attn=config.self_attends_per_block,
    )
    return model
