"""Conversion of weights between this model and `transformers`' PerceiverForImageClassificationFourier.

That model is Perceiver IO's ImageNet model with Fourier positions: one cross-attend, one latent block run several
times, and a decoder. It computes the same function. Parameter names differ; query, key and value of a latent layer are
three matrices there and one here; the decoder query is (1, D) there and (D,) here. Sizes that config.json does not
contain are constants there: 3 colours, 64 bands, frequencies up to 112. The library itself is not imported.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig

ARCHITECTURE = "PerceiverForImageClassificationFourier"

_SIZES = {
    "num_latents": "latents",
    "d_latents": "width",
    "num_blocks": "latent_block_repeats",
    "num_self_attends_per_block": "self_attends_per_block",
    "num_self_attention_heads": "heads",
}
_FIXED = {
    "num_cross_attention_heads": 1,
    "qk_channels": None,
    "v_channels": None,
    "cross_attention_shape_for_attention": "kv",
    "self_attention_widening_factor": 1,
    "cross_attention_widening_factor": 1,
    "hidden_act": "gelu",
    "use_query_residual": True,
}
"""Settings of config.json for which this model supports one value only."""

_IMAGE = ImageInput(224, 224, 3, patch=1, bands=64, max_frequency=224.0, pixel_scale="imagenet")
_OTHERS: dict[str, Any] = {
    "cross_attends": 1,
    "readout": "decoder",
    "audio": None,
    "video": None,
    "points": None,
}

_DECODER = "perceiver.decoder.decoder"
_QUERY = f"{_DECODER}.output_position_encodings.position_embeddings"
_DENSE = {"layernorm": "dense.norm", "mlp.dense1": "dense.expand", "mlp.dense2": "dense.project"}
_CROSS_ATTEND = {
    "attention.self.layernorm1": "latent_norm",
    "attention.self.query": "query",
    "attention.self.value": "value",
    "attention.output.dense": "output",
    **_DENSE,
}
_CROSS_ATTEND_OWN = {
    "attention.self.layernorm2.weight": "token_gain",
    "attention.self.layernorm2.bias": "token_bias",
    "attention.self.key.weight": "key_weight",
    "attention.self.key.bias": "key_bias",
}
_SELF_ATTEND = {"attention.self.layernorm1": "norm", "attention.output.dense": "output", **_DENSE}
_JOINED = ("query", "key", "value")


def from_transformers(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Convert a model of `transformers` to this project's layout.

    Args:
        weights: Tensors of any shape by name, as in model.safetensors.
        config: The content of config.json.
        source: Name to give the source whose classes the model predicts.

    Returns:
        The model's options, for images of 224 x 224, and its weights by name, each of any shape. They share memory with
        the given ones where possible.

    Raises:
        UserError: The architecture is another one, or has layers that this model does not have.
    """
    # config.json omits default values. Those of `transformers` are the supported ones, except 8 cross-attention heads.
    for name, needed in _FIXED.items():
        if config.get(name, None if name == "num_cross_attention_heads" else needed) != needed:
            raise UserError(
                f"config.json: {name} is {config.get(name)!r}, must be {needed!r}: no other value can be converted"
            )
    missing = [name for name in _SIZES if name not in config]
    if missing:
        raise UserError(f"config.json has no {missing[0]}: use the file that was saved with the model")
    sizes: dict[str, Any] = {ours: config[theirs] for theirs, ours in _SIZES.items()}
    model = ModelConfig(image=_IMAGE, **sizes, **_OTHERS)
    layers = model.self_attends_per_block
    names = _names(layers, source)
    _check_names(weights, [*names, _QUERY, *(part for parts in _joined(layers).values() for part in parts)])
    translated = {ours: weights[theirs] for theirs, ours in names.items()}
    translated[f"decoder.queries.{source}"] = weights[_QUERY][0]
    for ours, parts in _joined(layers).items():
        translated[ours] = torch.cat([weights[part] for part in parts])
    return model, translated


def to_transformers(
    weights: Mapping[str, Tensor], model: ModelConfig, source: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert a model of this project to the layout of `transformers`.

    Pixel scaling is not part of that layout: there an image processor does it.

    Args:
        weights: Tensors of any shape by name, of a model with a decoder; may include the heads of other sources.
        model: The model's options.
        source: Name of the source whose query and head are converted.

    Returns:
        Weights by name, each of any shape, which share memory with the given ones where possible, and the content of
        config.json.

    Raises:
        UserError: The layout cannot express one of the options, or the source is unknown.
    """
    _check_fits(model)
    if f"heads.{source}.weight" not in weights:
        raise UserError(
            f"source {source!r} has no head in these weights: name a source that the model was trained on"
        )
    layers = model.self_attends_per_block
    translated = {theirs: weights[ours] for theirs, ours in _names(layers, source).items()}
    translated[_QUERY] = weights[f"decoder.queries.{source}"][None]
    for ours, parts in _joined(layers).items():
        translated.update(zip(parts, weights[ours].chunk(len(parts)), strict=True))
    config = {theirs: getattr(model, ours) for theirs, ours in _SIZES.items()} | _FIXED
    classes, _ = weights[f"heads.{source}.weight"].shape
    channels = weights["cross_attends.0.token_gain"].shape[0]
    named = {
        "model_type": "perceiver",
        "architectures": [ARCHITECTURE],
        "num_labels": classes,
        "d_model": channels,
    }
    return translated, named | config


def _check_fits(model: ModelConfig) -> None:
    """Check that the layout can express the model; with one cross-attend the sharing options have no effect.

    Raises:
        UserError: It cannot.
    """
    for name, needed in _OTHERS.items():
        if getattr(model, name) != needed:
            raise UserError(
                f"model.{name} is {getattr(model, name)!r}, must be {needed!r} in the layout of {ARCHITECTURE}: "
                "this model cannot be converted"
            )
    image = model.image
    alike = ("channels", "patch", "bands", "max_frequency", "position", "permutation_seed")
    if image is None or any(getattr(image, name) != getattr(_IMAGE, name) for name in alike):
        raise UserError(
            f"model.image is {image}, must equal {_IMAGE} except for its size and pixel_scale in the layout of "
            f"{ARCHITECTURE}: this model cannot be converted"
        )


def _names(layers: int, source: str) -> dict[str, str]:
    """Return this project's name of each tensor that is the same in both layouts, by its name in `transformers`."""
    names = {"perceiver.embeddings.latents": "latents"}
    modules = {f"{_DECODER}.final_layer": f"heads.{source}"}
    cross_attends = {
        "perceiver.encoder.cross_attention": "cross_attends.0",
        f"{_DECODER}.decoding_cross_attention": "decoder.cross_attend",
    }
    for theirs, ours in cross_attends.items():
        names |= {f"{theirs}.{part}": f"{ours}.{own}" for part, own in _CROSS_ATTEND_OWN.items()}
        modules |= {f"{theirs}.{part}": f"{ours}.{own}" for part, own in _CROSS_ATTEND.items()}
    for layer in range(layers):
        theirs, ours = f"perceiver.encoder.self_attends.{layer}", f"latent_blocks.0.{layer}"
        modules |= {f"{theirs}.{part}": f"{ours}.{own}" for part, own in _SELF_ATTEND.items()}
    both = ("weight", "bias")
    return names | {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in both}


def _joined(layers: int) -> dict[str, list[str]]:
    """Return the three names in `transformers` of each tensor that concatenates them, by this project's name."""
    return {
        f"latent_blocks.0.{layer}.query_key_value.{kind}": [
            f"perceiver.encoder.self_attends.{layer}.attention.self.{part}.{kind}" for part in _JOINED
        ]
        for layer in range(layers)
        for kind in ("weight", "bias")
    }


def _check_names(weights: Mapping[str, Tensor], expected: Iterable[str]) -> None:
    differing = sorted(set(weights) ^ set(expected))
    if differing:
        where = "has" if differing[0] in weights else "lacks"
        raise UserError(
            f"the weights are not those of a {ARCHITECTURE} with the sizes in config.json: the file {where} "
            f"'{differing[0]}'; no other model can be converted"
        )
