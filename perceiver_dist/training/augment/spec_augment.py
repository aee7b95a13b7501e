"""SpecAugment (Park et al. 2019, arXiv 1904.08779): time and frequency masking of log-mel spectrograms.

Masked spans of time and ranges of frequency are replaced by the spectrogram's mean. Time is not warped, which the
authors found to matter least. The masks are drawn from the run's seed, the source, the unit's number and the row.
"""

import numpy as np

from perceiver_dist.data.batches import Batch
from perceiver_dist.modalities import AudioInput
from pipelines.permutation import hash64
from pipelines.shards.source import SourceConfig


def spectrogram_masks(
    batch: Batch, source: SourceConfig, audio: AudioInput | None, seed: int
) -> dict[str, np.ndarray]:
    """Return the masks of a unit's spectrograms, according to the source's `augment` options.

    Args:
        batch: The unit.
        source: Source of the unit.
        audio: The model's audio input; None if it has none.
        seed: Seed of the run.

    Returns:
        "audio" -> (B, segments, bands) bool, true where hidden; empty if nothing is masked.
    """
    augment = source.augment
    if not augment.masks or audio is None or "audio" not in batch.arrays:
        return {}
    hidden = np.zeros((len(batch.keys), *audio.grid), bool)
    segments, bands = audio.grid
    for row, spectrogram in enumerate(hidden):
        # Keyed by unit and row, so that every rank and every resumed run draws the same masks.
        random = np.random.default_rng(hash64(seed, source.name, "masks", batch.unit, row))
        for _ in range(augment.masks):
            spectrogram[_span(segments, augment.masked_time, random), :] = True
            spectrogram[:, _span(bands, augment.masked_bands, random)] = True
    return {"audio": hidden}


def _span(length: int, max_fraction: float, random: np.random.Generator) -> slice:
    """Return a span of 0 to max_fraction * length positions at a uniform position."""
    size = int(random.integers(0, int(max_fraction * length), endpoint=True))
    start = int(random.integers(0, length - size, endpoint=True))
    return slice(start, start + size)
