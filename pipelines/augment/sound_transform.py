"""Augmentation of sounds: functions of the options of a source and of the seed of a sample."""

from dataclasses import replace

import numpy as np

from perceiver_dist.modalities import AudioInput
from pipelines.augment.augment_config import AugmentConfig


def played_at(spec: AudioInput, augment: AugmentConfig, seed: int) -> AudioInput:
    """Return the input with the sample rate to decode to, so that the sound is faster or slower at its own rate.

    A second that is decoded to fewer samples is over sooner when they are played: at 0.9 times the rate, a sound is
    1 / 0.9 times as fast, and as much higher.

    Args:
        spec: The model's input.
        augment: Options of the source.
        seed: Seed of the sample.
    """
    if not augment.speed:
        return spec
    factor = 1 + augment.speed * (2 * _drawn(seed)[0] - 1)
    return replace(spec, sample_rate=max(1, round(spec.sample_rate / factor)))


def with_gain(wave: np.ndarray, augment: AugmentConfig, seed: int) -> np.ndarray:
    """Return a sound at another level. Values beyond the range of 16 bits are clipped, as by a recorder.

    Args:
        wave: int16 (samples,).
        augment: Options of the source.
        seed: Seed of the sample.
    """
    if not augment.gain:
        return wave
    decibels = augment.gain * (2 * _drawn(seed)[1] - 1)
    return np.clip(np.rint(wave * 10 ** (decibels / 20)), -32768, 32767).astype(np.int16)


def _drawn(seed: int) -> np.ndarray:
    # Both are drawn whatever is switched on, so that one option does not change the choice of the other.
    return np.random.default_rng([seed, 2]).random(2)
