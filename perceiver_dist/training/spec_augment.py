"""SpecAugment (Park et al. 2019, arXiv 1904.08779): parts of a log-mel spectrogram are hidden in training.

Stretches of time and ranges of frequency are replaced by the spectrogram's mean; time is not warped, which the authors
found to matter least. What is hidden follows from the run's seed, the source, the unit's number and the row.
"""

import numpy as np
import torch
from torch import Tensor

from perceiver_dist.data.batches import Batch
from perceiver_dist.modalities import AudioInput
from pipelines.permutation import hash64
from pipelines.shards.source import SourceConfig


def spectrogram_masks(
    batch: Batch, source: SourceConfig, audio: AudioInput | None, seed: int
) -> dict[str, Tensor]:
    """Say which values of a unit's spectrograms the model is not to see, as the source's `augment` says.

    Args:
        batch: The unit.
        source: Its source.
        audio: What sounds become.
        seed: The run's seed.

    Returns:
        Audio -> (B, segments, bands) bool; nothing if nothing is to be hidden.
    """
    augment = source.augment
    if not augment.masks or audio is None or "audio" not in batch.arrays:
        return {}
    hidden = np.zeros((len(batch.keys), *audio.grid), bool)
    segments, bands = audio.grid
    for row, spectrogram in enumerate(hidden):
        random = np.random.default_rng(hash64(seed, source.name, "masks", batch.unit, row))
        for _ in range(augment.masks):
            spectrogram[_stretch(segments, augment.masked_time, random), :] = True
            spectrogram[:, _stretch(bands, augment.masked_bands, random)] = True
    return {"audio": torch.from_numpy(hidden).to(batch.valid.device)}


def _stretch(length: int, most: float, random: np.random.Generator) -> slice:
    """A stretch of 0 to most * length places, anywhere."""
    size = int(random.integers(0, int(most * length), endpoint=True))
    start = int(random.integers(0, length - size, endpoint=True))
    return slice(start, start + size)
