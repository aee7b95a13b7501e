"""Log-mel spectrogram: values against the definition, and as the input of a model."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import HEADS, SMALL, random_model

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, tokens
from perceiver_dist.model.mel import log_mel, mel_filters
from perceiver_dist.model.model_config import CrossAttentionPath, ModelConfig
from perceiver_dist.model.perceiver import Perceiver

BANDS = 10
SPEC = AudioInput(sample_rate=8000, samples=512, segment=64, mel_bands=BANDS, bands=3)


def levels_by_definition(sound: list[float], band: int, column: int) -> float:
    """Return one value, by the sums of its definition."""
    size, rate = 2 * SPEC.segment, SPEC.sample_rate
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / size) for n in range(size)]
    first = column * SPEC.segment - SPEC.segment // 2
    view = [sound[first + n] if 0 <= first + n < len(sound) else 0.0 for n in range(size)]

    def mel(frequency: float) -> float:
        return 2595 * math.log10(1 + frequency / 700)

    step = mel(rate / 2) / (BANDS + 1)
    power = 0.0
    for k in range(size // 2 + 1):
        turns = [2 * math.pi * k * n / size for n in range(size)]
        real = sum(v * w * math.cos(t) for v, w, t in zip(view, window, turns, strict=True))
        imaginary = sum(v * w * math.sin(t) for v, w, t in zip(view, window, turns, strict=True))
        height = max(0.0, 1 - abs(mel(k * rate / size) - (band + 1) * step) / step)
        power += height * (real**2 + imaginary**2) / sum(window) ** 2
    return 1 + 2 * math.log10(power + 1e-6) / 6


def spectrogram(sound: torch.Tensor) -> torch.Tensor:
    return log_mel(sound, SPEC.segment, mel_filters(SPEC.sample_rate, 2 * SPEC.segment, BANDS))


def test_values_match_the_definition() -> None:
    sound = 2 * torch.rand(512, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    found = spectrogram(sound[None])[0]
    assert found.shape == (8, 10)
    for column, band in ((0, 0), (0, 9), (3, 4), (7, 2), (7, 9)):
        expected = levels_by_definition(sound.tolist(), band, column)
        assert found[column, band].item() == pytest.approx(expected, abs=1e-9)


def test_a_tone_peaks_in_its_band_and_silence_is_the_floor() -> None:
    time = torch.arange(512) / SPEC.sample_rate
    for band in range(10):
        mel = (band + 1) * 2595 * math.log10(1 + 4000 / 700) / 11
        frequency = 700 * (10 ** (mel / 2595) - 1)
        found = spectrogram((2 * math.pi * frequency * time).sin()[None])[0, 2:6]
        assert (found.argmax(1) == band).all()
        assert 0.5 < found.max() < 1
    assert (spectrogram(torch.zeros(1, 512)) == -1).all()


@pytest.mark.parametrize("path", ["dense", "factored", "separable"])
def test_all_attention_paths_agree_and_autocast_has_no_effect(path: CrossAttentionPath) -> None:
    config = ModelConfig(latents=4, width=8, heads=2, cross_attention=path, audio=SPEC, image=SMALL["image"])
    model = random_model(config).double()
    sound = torch.randint(-(2**15), 2**15, (2, 512), dtype=torch.int16)
    dense = Perceiver(replace(config, cross_attention="dense"), HEADS).double()
    dense.load_state_dict(model.state_dict())
    logits = model({"audio": sound}, {}, "clips")
    torch.testing.assert_close(logits, dense({"audio": sound}, {}, "clips"), atol=1e-10, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        content = model.float().tokenizers["audio"](sound, torch.zeros(4)).content
    torch.testing.assert_close(content.flatten(1), spectrogram(sound / 32768).flatten(1))


def test_the_papers_spectrogram_has_4800_tokens() -> None:
    assert tokens(AudioInput(sample_rate=48_000, samples=61_440, segment=1024, mel_bands=80)) == 4800


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mel_bands": 0}, "model.audio.mel_bands is 0, must be at least 1"),
        ({"segment": 33, "samples": 33}, "model.audio.segment is 33, must be even for a spectrogram"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        replace(SPEC, **options)
