"""Tokens that a model does not see in training: SpecAugment's masks, and single tokens dropped at random.

A hidden token keeps its position, and gets the mean content of its modality in the sample. A point of a cloud has no
position besides its content: a dropped one becomes a copy of another point of its cloud, as in PointNet++ (Qi et al.
2017, arXiv 1706.02413), so that the model sees a cloud of fewer points. What is hidden is drawn from the run's seed,
the source and the unit's number, so that every rank and every resumed run hides the same.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from perceiver_dist.data.batches import Batch
from perceiver_dist.data.device_copies import copies_to
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.training.augment.spec_augment import spectrogram_masks
from pipelines.permutation import hash64
from pipelines.shards.source import SourceConfig

_POINTS = "points"


class Shown(NamedTuple):
    """What the model sees of a unit.

    Attributes:
        arrays: Modality -> (B, *array_shape).
        masked: Modality -> (B, *grid) bool, true where the content is hidden; without modalities of which all is seen.
    """

    arrays: dict[str, Tensor]
    masked: dict[str, Tensor]


def hide_tokens(
    arrays: Mapping[str, Tensor], batch: Batch, source: SourceConfig, model: ModelConfig, seed: int
) -> Shown:
    """Hide tokens of a unit, according to the source's `augment` options.

    Args:
        arrays: The unit's arrays, perhaps mixed.
        batch: The unit.
        source: Source of the unit.
        model: Sizes of the model's inputs.
        seed: Seed of the run.
    """
    hidden = spectrogram_masks(batch, source, model.audio, seed)
    dropped = _dropped(arrays, batch, source, model, seed)
    order = {_POINTS: _repeated(dropped.pop(_POINTS))} if _POINTS in dropped else {}
    for name, of_modality in dropped.items():
        hidden[name] = hidden[name] | of_modality if name in hidden else of_modality
    if not hidden and not order:
        return Shown(dict(arrays), {})
    device = next(iter(arrays.values())).device
    sent = copies_to(device).send(hidden | order)
    shown = dict(arrays)
    if order:
        points = arrays[_POINTS]
        shown[_POINTS] = points.gather(1, sent.pop(_POINTS)[:, :, None].expand_as(points))
    return Shown(shown, sent)


def _dropped(
    arrays: Mapping[str, Tensor], batch: Batch, source: SourceConfig, model: ModelConfig, seed: int
) -> dict[str, np.ndarray]:
    """Return the dropped tokens, (B, *grid) bool by modality; empty without token dropout."""
    probability = source.augment.token_dropout
    if not probability:
        return {}
    found = {}
    for name in sorted(arrays):
        # Keyed by the unit and the modality, so that another modality of the model changes nothing.
        random = np.random.default_rng(hash64(seed, source.name, "tokens", batch.unit, name))
        size = (len(batch.keys), *model.modalities[name].grid)
        found[name] = random.random(size, dtype=np.float32) < probability
    return found


def _repeated(dropped: np.ndarray) -> np.ndarray:
    """Return the point that each place shows: the last one up to it that is kept, around the end. (B, points) int64.

    A cloud of which all is dropped keeps its last point.
    """
    points = dropped.shape[1]
    before = np.maximum.accumulate(np.where(dropped, -1, np.arange(points)), axis=1)
    last = np.where(before[:, -1:] < 0, points - 1, before[:, -1:])
    return np.where(before < 0, last, before)
