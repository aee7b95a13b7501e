"""Fine-tuning: initialization from a trained model, for other sources and additional modalities.

Weights of both models are copied. Weights of the new model only are initialized as usual: heads, and the encodings and
positions of new modalities. A new modality may need tokens with more channels. The channels of a token are content,
position, encoding, in this order (`perceiver_dist/model/inputs.py`), and a longer encoding adds channels at the end. So
the old weights of a cross-attend are the first rows and columns of the new ones, and the others are initialized as
usual.
"""

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor, nn

from perceiver_dist.checkpoint.stored_model import find_model
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.model.inputs import token_channels
from perceiver_dist.model.model_config import ModelConfig

_MAY_BE_NEW = ("heads.", "encodings.", "positions.", "decoder.queries.")
"""Prefixes of weights that the trained model need not have: there is one for each source or modality."""
_MAY_GROW = ("cross_attends.", "encodings.")
"""Prefixes of weights that depend on the number of token channels."""
_WITHOUT_WEIGHTS = {"activation_checkpointing", "cross_attention", "initial_logit_std", "modality_channels"}
"""Options of the model on which no weight depends, or that only add channels."""


def check_fine_tuning(config: RunConfig) -> None:
    """Check that the model of `train.fine_tune` fits the configuration, if one is given.

    Args:
        config: The run's configuration.

    Raises:
        UserError: The model does not exist, or an option of the model has another value than in its training.
    """
    place = config.train.fine_tune
    if place is None:
        return
    trained = find_model(place).config
    old, new = trained.model, config.model
    for name in (field.name for field in fields(ModelConfig)):
        if name in _WITHOUT_WEIGHTS or name in {**old.modalities, **new.modalities}:
            continue
        if getattr(old, name) != getattr(new, name):
            raise UserError(
                f"model.{name} is {getattr(new, name)}, but train.fine_tune {place} was trained with "
                f"{getattr(old, name)}, and its weights have that size; use the same"
            )
    for name, spec in old.modalities.items():
        other = new.modalities.get(name)
        if other is not None and _layout(spec) != _layout(other):
            raise UserError(
                f"model.{name} gives tokens of {_layout(other)[:2]} content and position channels, but train.fine_tune "
                f"{place} was trained with {_layout(spec)[:2]}; use its patch, bands, channels and position"
            )
    for source, classes in config.heads.items():
        if trained.heads.get(source, classes) != classes:
            raise UserError(
                f"source '{source}': has {classes} classes, but train.fine_tune {place} was trained with "
                f"{trained.heads[source]} of that source; rename the source to train a new head"
            )
    # Channels can be added at the end, but not removed from the middle.
    before, after = token_channels(old), token_channels(new)
    if after < before:
        raise UserError(
            f"model: tokens have {after} channels, but train.fine_tune {place} was trained with {before}; keep its "
            "modalities in model, whether or not a source has them"
        )


def load_trained_weights(model: nn.Module, weights: Mapping[str, Tensor], place: str) -> None:
    """Copy a trained model's weights into a new model.

    Args:
        model: An initialized Perceiver; changed in place.
        weights: fp32 weights by name.
        place: Path or URI of the trained model, for messages.

    Raises:
        UserError: A weight is missing, or its shape does not fit.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = weights.get(name)
            if stored is None and name.startswith(_MAY_BE_NEW):
                continue
            if stored is None or not _fits(name, stored, parameter):
                raise UserError(
                    f"train.fine_tune {place}: '{name}' is {'missing' if stored is None else tuple(stored.shape)}, "
                    f"expected {tuple(parameter.shape)}; use the model options it was trained with"
                )
            # The old weights are the first rows and columns of a weight that has grown; see the module.
            parameter[tuple(slice(size) for size in stored.shape)] = stored.to(parameter.device)


def _fits(name: str, stored: Tensor, parameter: Tensor) -> bool:
    if name.startswith(_MAY_GROW):
        return all(old <= new for old, new in zip(stored.shape, parameter.shape, strict=True))
    return stored.shape == parameter.shape


def _layout(spec: object) -> tuple[object, ...]:
    """Return the options of a modality that determine the meaning of a token's channels."""
    names = ("content_channels", "bands", "position", "position_channels", "permutation_seed", "mel_bands")
    return tuple(getattr(spec, name, None) for name in names)
