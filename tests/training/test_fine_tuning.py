"""Fine-tuning: copied weights, rejected models, and frozen parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors.torch import save_file

from perceiver_dist.checkpoint.format import read_weights
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig, TrainConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.training.fine_tuning import check_fine_tuning, load_trained_weights
from pipelines.shards.source import SourceConfig

IMAGE = ImageInput(height=8, width=8, channels=1, patch=2, bands=2)
AUDIO = AudioInput(samples=256, segment=64, bands=2)
PETS = SourceConfig("pets", "x.tar", ["image"], 3)
BIRDS = SourceConfig("birds", "x.tar", ["audio"], 5)
MODEL = ModelConfig(latents=4, width=16, heads=2, image=IMAGE)
FROZEN = ["latents", "latent_blocks", "encodings"]


def built(config: RunConfig, seed: int) -> Perceiver:
    torch.manual_seed(seed)
    return Perceiver(config.model, config.heads)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """An exported model of one source of images."""
    config = RunConfig(MODEL, [PETS])
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    save_file(built(config, 0).state_dict(), folder / "weights.safetensors")
    return folder


def tuned(
    place: Path | str, model: ModelConfig = MODEL, sources: tuple[SourceConfig, ...] = (PETS,)
) -> RunConfig:
    return RunConfig(model, list(sources), train=TrainConfig(fine_tune=str(place)))


def test_common_weights_are_copied_and_a_new_head_is_initialized(trained: Path) -> None:
    config = tuned(trained, sources=(PETS, replace(PETS, name="cats", num_classes=7)))
    check_fine_tuning(config)
    old, new, untouched = built(RunConfig(MODEL, [PETS]), 0), built(config, 1), built(config, 1)
    load_trained_weights(new, old.state_dict(), str(trained))
    for name, parameter in new.state_dict().items():
        expected = untouched if name.startswith("heads.cats.") else old
        torch.testing.assert_close(parameter, expected.state_dict()[name], rtol=0, atol=0)


def test_a_new_modality_keeps_the_learned_channels_in_place(trained: Path) -> None:
    config = tuned(trained, replace(MODEL, audio=AUDIO), (PETS, BIRDS))
    check_fine_tuning(config)
    old, new, untouched = built(RunConfig(MODEL, [PETS]), 0), built(config, 1), built(config, 1)
    load_trained_weights(new, old.state_dict(), str(trained))
    before: Any = old.cross_attends[0]
    after: Any = new.cross_attends[0]
    beginning: Any = untouched.cross_attends[0]
    channels = len(before.token_gain)
    assert len(after.token_gain) > channels
    torch.testing.assert_close(after.key_weight[:channels, :channels], before.key_weight, rtol=0, atol=0)
    beyond = beginning.key_weight[channels:]
    torch.testing.assert_close(after.key_weight[channels:], beyond, rtol=0, atol=0)
    torch.testing.assert_close(new.encodings.audio, untouched.encodings.audio, rtol=0, atol=0)
    for name, parameter in old.latent_blocks.state_dict().items():
        torch.testing.assert_close(new.latent_blocks.state_dict()[name], parameter, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "source", "error"),
    [
        ({"latents": 8}, {}, "model.latents is 8, but train.fine_tune .* was trained with 4"),
        ({"share_latent_blocks": False}, {}, "model.share_latent_blocks is False, but .* with True"),
        ({"image": replace(IMAGE, bands=3)}, {}, "use its patch, bands, channels and position"),
        ({"image": replace(IMAGE, patch=1)}, {}, "use its patch, bands, channels and position"),
        ({}, {"num_classes": 4}, "source 'pets': has 4 classes, but .* with 3 of that source"),
    ],
)
def test_a_model_that_does_not_fit_is_rejected_by_option(
    trained: Path, model: dict[str, Any], source: dict[str, Any], error: str
) -> None:
    with pytest.raises(UserError, match=error):
        check_fine_tuning(tuned(trained, replace(MODEL, **model), (replace(PETS, **source),)))


def test_images_may_have_another_size(trained: Path) -> None:
    """Weights depend on the channels of Fourier features, not on the number of positions."""
    config = tuned(trained, replace(MODEL, image=replace(IMAGE, height=16, width=12)))
    check_fine_tuning(config)
    load_trained_weights(built(config, 1), built(RunConfig(MODEL, [PETS]), 0).state_dict(), str(trained))


def test_a_missing_model_and_missing_weights_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no trained model there"):
        check_fine_tuning(tuned(tmp_path / "nowhere"))
    weights = built(RunConfig(MODEL, [PETS]), 0).state_dict()
    with pytest.raises(UserError, match="'latents' is missing"):
        load_trained_weights(
            built(RunConfig(MODEL, [PETS]), 1), {k: v for k, v in weights.items() if k != "latents"}, "x"
        )


@pytest.mark.parametrize("world_size", [1, 2])
def test_frozen_parameters_do_not_change_at_any_zero_stage(tmp_path: Path, world_size: int) -> None:
    kinds = [(stage, optimizer) for stage in (0, 1, 2, 3) for optimizer in ("adamw", "lamb")]
    work = [(f"{kind}", ranks.train_frozen, *kind, FROZEN, 3) for kind in kinds]
    ranks.run_ranks(world_size, tmp_path, *work)
    before = {name: each.detach() for name, each in built(ranks.CONFIG, 0).named_parameters()}
    for stage, optimizer in kinds:
        after = read_weights(str(tmp_path / f"frozen-stage{stage}-{optimizer}" / "step-00000003"))
        for name, weight in after.items():
            is_same = torch.equal(weight, before[name])
            # Nothing depends on a key bias (perceiver_dist/model/attention.py), and decay does not touch it.
            assert is_same == (name.partition(".")[0] in FROZEN or name.endswith("key_bias")), (name, stage)
