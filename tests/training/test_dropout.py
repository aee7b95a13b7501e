"""Dropout of tokens and latents and stochastic depth: shares, determinism by unit, and points that become others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.batches import Batch
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.training.augment.dropout import Kept, draw_kept
from perceiver_dist.training.augment.hidden_tokens import hide_tokens
from perceiver_dist.training.augment.spec_augment import spectrogram_masks
from pipelines.augment.augment_config import AugmentConfig
from pipelines.shards.source import SourceConfig

CPU = torch.device("cpu")
AUDIO = AudioInput(samples=2560, segment=64, mel_bands=20)
MODEL = ModelConfig(
    latents=10,
    width=16,
    heads=2,
    cross_attends=2,
    self_attends_per_block=4,
    image=ImageInput(height=40, width=40, channels=1),
    audio=AUDIO,
    points=PointCloudInput(points=100, bands=2),
)
SOURCE = SourceConfig("things", "x.tar", ["image", "audio", "points"], 3)


def batch_of(unit: int) -> Batch:
    arrays = {
        "image": torch.zeros(8, 40, 40, 1, dtype=torch.uint8),
        "audio": torch.zeros(8, AUDIO.samples, dtype=torch.int16),
        "points": torch.arange(2400.0).view(8, 100, 3),
    }
    valid = torch.ones(8, dtype=torch.bool)
    return Batch(unit, [""] * 8, valid, torch.arange(8) % 3, arrays, dict.fromkeys(arrays, valid), [])


def shown(unit: int, seed: int = 0, **augment: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    batch = batch_of(unit)
    source = replace(SOURCE, augment=AugmentConfig(**augment))
    found = hide_tokens(batch.arrays, batch, source, MODEL, seed)
    return found.arrays, found.masked


def kept(unit: int, seed: int = 0, **optim: Any) -> Kept:
    config = RunConfig(MODEL, [SOURCE], OptimConfig(**optim))
    config = replace(config, train=replace(config.train, seed=seed))
    return draw_kept(batch_of(unit), SOURCE.name, config, CPU)


def test_nothing_is_left_out_by_default() -> None:
    arrays, masked = shown(0)
    assert masked == {}
    assert all(torch.equal(array, batch_of(0).arrays[name]) for name, array in arrays.items())
    assert kept(0) == Kept(None, None)


@settings(max_examples=20)
@given(unit=st.integers(0, 2**40), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_a_share_of_the_tokens_is_hidden(unit: int, share: float) -> None:
    arrays, masked = shown(unit, token_dropout=share)
    assert set(masked) == {"image", "audio"}
    for name, grid in (("image", (40, 40)), ("audio", (40, 20))):
        assert masked[name].shape == (8, *grid)
        assert masked[name].float().mean() == pytest.approx(share, abs=0.06)
    # Every place of a cloud shows a point of it; as many different ones as are kept.
    places = (arrays["points"][:, :, 0] / 3 - 100 * torch.arange(8)[:, None]).long()
    assert ((places >= 0) & (places < 100)).all()
    found = np.mean([len(set(row.tolist())) for row in places])
    assert found / 100 == pytest.approx(1 - share, abs=0.12)
    assert all(row[place] == place for row in places.tolist() for place in set(row))


def test_what_is_hidden_depends_on_unit_seed_and_row_and_on_nothing_else() -> None:
    hidden = [shown(unit, seed, token_dropout=0.3)[1]["image"] for unit in range(4) for seed in (0, 1)]
    assert len({row.numpy().tobytes() for unit in hidden for row in unit}) == 64
    assert torch.equal(shown(3, 1, token_dropout=0.3)[1]["image"], hidden[-1])


def test_masks_and_dropped_tokens_are_hidden_together() -> None:
    source = replace(SOURCE, augment=AugmentConfig(masks=2))
    masks = torch.from_numpy(spectrogram_masks(batch_of(5), source, AUDIO, 0)["audio"])
    dropped, both = (shown(5, token_dropout=0.3, masks=count)[1]["audio"] for count in (0, 2))
    assert torch.equal(both, dropped | masks)
    assert torch.equal(shown(5, masks=2)[1]["audio"], masks)


@settings(max_examples=30)
@given(unit=st.integers(0, 2**40), share=st.floats(0.01, 0.99))
def test_as_many_latents_are_kept_for_every_unit(unit: int, share: float) -> None:
    latents = kept(unit, latent_dropout=share).latents
    assert latents is not None
    assert len(latents) == max(1, round((1 - share) * 10))
    assert latents.tolist() == sorted(set(latents.tolist()))
    assert 0 <= latents.min() <= latents.max() < 10
    again = kept(unit, latent_dropout=share).latents
    assert again is not None
    assert torch.equal(again, latents)


def test_later_layers_are_left_out_more_often_and_the_mean_update_stays() -> None:
    depths = torch.stack(
        [depth for unit in range(200) if (depth := kept(unit, stochastic_depth=0.8).depth) is not None]
    )
    assert depths.shape == (200, 8, 8)
    for layer in range(8):
        probability = 0.8 * (layer + 1) / 8
        of_layer = depths[:, layer]
        assert (of_layer == 0).float().mean() == pytest.approx(probability, abs=0.05)
        assert sorted(set(of_layer.flatten().tolist())) == pytest.approx([0, 1 / (1 - probability)])
        assert of_layer.mean() == pytest.approx(1, abs=0.2)
    assert len({row.numpy().tobytes() for row in depths}) == 200


@pytest.mark.parametrize(
    ("build", "name"),
    [(OptimConfig, "latent_dropout"), (OptimConfig, "stochastic_depth"), (AugmentConfig, "token_dropout")],
)
def test_a_share_out_of_range_is_named(build: Any, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is 1.0, must be at least 0 and below 1"):
        build(**{name: 1.0})
