"""SpecAugment: size of the masks, determinism by unit and row, and no influence of masked values."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.batches import Batch
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput
from perceiver_dist.model.inputs import Tokenizer
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.training.augment.spec_augment import spectrogram_masks
from pipelines.augment.augment_config import AugmentConfig
from pipelines.shards.source import SourceConfig

AUDIO = AudioInput(sample_rate=8000, samples=2560, segment=64, mel_bands=20)
SOUNDS = SourceConfig("sounds", "x.tar", ["audio"], 3)


def source_of(**options: Any) -> SourceConfig:
    return replace(SOUNDS, augment=AugmentConfig(**options))


def batch_of(unit: int) -> Batch:
    random = torch.Generator().manual_seed(unit)
    sounds = torch.randint(-20000, 20000, (4, AUDIO.samples), generator=random).to(torch.int16)
    present = torch.ones(4, dtype=torch.bool)
    return Batch(unit, [""] * 4, present, torch.arange(4) % 3, {"audio": sounds}, {"audio": present}, [])


def test_nothing_is_masked_by_default() -> None:
    assert spectrogram_masks(batch_of(0), SOUNDS, AUDIO, 0) == {}


@given(unit=st.integers(0, 40), time=st.floats(0.05, 1), bands=st.floats(0.05, 1))
def test_a_mask_is_a_span_of_time_and_a_range_of_bands(unit: int, time: float, bands: float) -> None:
    source = source_of(masks=1, masked_time=time, masked_bands=bands)
    hidden = torch.from_numpy(spectrogram_masks(batch_of(unit), source, AUDIO, 5)["audio"])
    assert hidden.shape == (4, 40, 20)
    assert (spectrogram_masks(batch_of(unit), source, AUDIO, 5)["audio"] == hidden.numpy()).all()
    for row in hidden:
        times, ranges = row.all(dim=1), row.all(dim=0)
        if not row.all():
            torch.testing.assert_close(row, times[:, None] | ranges[None, :])
            for stretch, most in ((times, int(40 * time)), (ranges, int(20 * bands))):
                places = stretch.nonzero().flatten()
                assert len(places) <= most
                assert len(places) == 0 or places[-1] - places[0] == len(places) - 1


def test_masks_depend_on_row_and_unit() -> None:
    source = source_of(masks=2)
    masks = [spectrogram_masks(batch_of(unit), source, AUDIO, 0)["audio"] for unit in range(4)]
    assert len({row.tobytes() for unit in masks for row in unit}) == 16


@pytest.mark.parametrize("permutation_seed", [None, 3])
def test_masked_values_have_no_influence_except_on_the_mean(permutation_seed: int | None) -> None:
    audio = replace(AUDIO, permutation_seed=permutation_seed)
    torch.manual_seed(0)
    model = Perceiver(ModelConfig(latents=4, width=16, heads=2, audio=audio), {"sounds": 3}).double()
    tokenizer = model.tokenizers["audio"]
    assert isinstance(tokenizer, Tokenizer)
    sounds = batch_of(0).arrays["audio"]
    plain = tokenizer(sounds).content[..., 0]
    hidden = torch.zeros(4, *AUDIO.grid, dtype=torch.bool)
    hidden[1, 3:5] = True
    content = tokenizer(sounds, masked=hidden).content[..., 0]
    places = tokenizer._ordered(hidden.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(content[~places], plain[~places], rtol=0, atol=0)
    torch.testing.assert_close(content[places], plain[1].mean().expand(40))
    logits = model({"audio": sounds}, {}, "sounds", {"audio": hidden})
    unmasked = model({"audio": sounds}, {}, "sounds")
    torch.testing.assert_close(logits[[0, 2, 3]], unmasked[[0, 2, 3]])
    assert (logits[1] - unmasked[1]).abs().max() > 1e-6


@pytest.mark.parametrize("audio", [None, replace(AUDIO, mel_bands=None)])
def test_masks_without_a_spectrogram_are_rejected(audio: AudioInput | None) -> None:
    source = source_of(masks=2)
    model = ModelConfig(audio=audio) if audio else ModelConfig(audio=AUDIO, image=None)
    if audio is None:
        source = replace(source, modalities=["video"])
    with pytest.raises(
        UserError, match=r"model.video is null|augment.masks is 2, but it has no spectrograms"
    ):
        RunConfig(model, [source])
