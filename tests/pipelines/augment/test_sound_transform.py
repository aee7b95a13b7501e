"""Augmentation of sounds: speed and level by the seed, within the bounds, and not at all by default."""

import wave
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput
from pipelines.augment.augment_config import NO_AUGMENT, AugmentConfig
from pipelines.augment.image_transform import ImageTransform
from pipelines.augment.randomness import SampleRandomness
from pipelines.augment.sound_transform import played_at, with_gain
from pipelines.decode.sample import decode_sample
from pipelines.limits import DEFAULT_LIMITS
from pipelines.shards.sample_reader import RawSample
from pipelines.shards.source import SourceConfig

SPEC = AudioInput(sample_rate=8000, samples=4096, segment=128)
PITCH = 500


def tone(seconds: float = 2) -> bytes:
    """Return a WAV file with a tone of 500 Hz."""
    time = np.arange(int(seconds * 8000)) / 8000
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((20_000 * np.sin(2 * np.pi * PITCH * time)).astype("<i2").tobytes())
    return target.getvalue()


def decoded(augment: AugmentConfig, seed: int) -> np.ndarray:
    randomness = SampleRandomness(0.5, seed, augment=True, transform=ImageTransform(augment, seed))
    sample = RawSample("a.tar", "a", {"wav": tone()}, "", ())
    return decode_sample(sample, {"audio": SPEC}, randomness, DEFAULT_LIMITS)["audio"]


@given(seed=st.integers(0, 2**64 - 1), speed=st.floats(0.01, 0.9))
def test_the_rate_is_within_the_bounds(seed: int, speed: float) -> None:
    found = played_at(SPEC, AugmentConfig(speed=speed), seed).sample_rate
    assert 8000 / (1 + speed) - 1 <= found <= 8000 / (1 - speed) + 1


@pytest.mark.parametrize("seed", range(3))
def test_pitch_follows_the_speed(seed: int) -> None:
    augment = AugmentConfig(speed=0.3)
    sound = decoded(augment, seed)
    rate = played_at(SPEC, augment, seed).sample_rate
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert spectrum.argmax() * 8000 / len(sound) == pytest.approx(PITCH * 8000 / rate, rel=0.01)
    assert sound.shape == (4096,)


@pytest.mark.parametrize("seed", range(3))
def test_gain_changes_the_level_only(seed: int) -> None:
    plain, other = decoded(AugmentConfig(), seed), decoded(AugmentConfig(gain=6.0), seed)
    factor = np.abs(other.astype(float)).max() / np.abs(plain.astype(float)).max()
    assert factor != 1
    assert 10 ** (-6 / 20) - 1e-3 <= factor <= 10 ** (6 / 20)
    quiet = np.abs(plain * factor) < 32000
    assert other[quiet] == pytest.approx(plain[quiet] * factor, abs=8)


def test_a_loud_sound_is_clipped_instead_of_wrapping_around() -> None:
    seed = next(
        seed
        for seed in range(100)
        if with_gain(np.array([1000], np.int16), AugmentConfig(gain=20.0), seed)[0] > 2000
    )
    loud = with_gain(np.array([-30_000, 30_000], np.int16), AugmentConfig(gain=20.0), seed)
    assert loud.tolist() == [-32768, 32767]


def test_nothing_changes_by_default() -> None:
    wave = np.arange(9, dtype=np.int16)
    assert played_at(SPEC, NO_AUGMENT, 0) is SPEC
    assert with_gain(wave, NO_AUGMENT, 0) is wave


def test_speed_beside_frames_is_refused() -> None:
    with pytest.raises(UserError, match=r"augment.speed is 0.1, but modalities is \['audio', 'video'\]"):
        SourceConfig(
            "a", "a.tar", modalities=["audio", "video"], num_classes=2, augment=AugmentConfig(speed=0.1)
        )
