"""Attention maps: the model's own attention weights, at the tokens' places in the input."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput, VideoInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.observation.attention_maps import attention_maps
from perceiver_dist.model.perceiver import Perceiver

CONFIG = ModelConfig(
    latents=5,
    width=16,
    heads=2,
    cross_attends=3,
    self_attends_per_block=1,
    image=ImageInput(height=8, width=6, channels=1, patch=2, bands=2),
    audio=AudioInput(sample_rate=8000, samples=512, segment=64, mel_bands=4, bands=2),
    video=VideoInput(frames=2, height=8, width=8, patch=(1, 4, 4), bands=2),
    points=PointCloudInput(points=7, bands=2),
)
GRIDS = {"image": (4, 3), "audio": (8, 4), "video": (2, 2, 2), "points": (7,)}


def build_model(config: ModelConfig) -> tuple[Perceiver, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Perceiver(config, {"all": 3}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    arrays = {}
    for name, spec in config.modalities.items():
        values = 200 * torch.rand(2, *spec.array_shape)
        arrays[name] = values.to(getattr(torch, spec.array_dtype))
    return model, arrays


def test_attention_weights_sum_to_one_over_present_modalities() -> None:
    model, arrays = build_model(CONFIG)
    present = {"audio": torch.tensor([True, False])}
    maps = attention_maps(model, arrays, present)
    assert len(maps) == 3
    for of_one in maps:
        assert {name: tuple(weights.shape[2:]) for name, weights in of_one.items()} == GRIDS
        sums = sum(weights.flatten(2).sum(-1) for weights in of_one.values())
        torch.testing.assert_close(sums, torch.ones(2, 5, dtype=torch.float64))
        assert of_one["audio"][1].abs().max() == 0
        assert of_one["audio"][0].min() > 0


@pytest.mark.parametrize("seed", [None, 11])
def test_attention_maps_are_the_weights_that_the_model_uses(seed: int | None) -> None:
    """If all weight is on one token, only a change of that token's pixels changes the output."""
    assert CONFIG.image is not None
    config = replace(
        CONFIG, image=replace(CONFIG.image, permutation_seed=seed), audio=None, video=None, points=None
    )
    model, arrays = build_model(config)
    with torch.no_grad():
        model.get_parameter("cross_attends.0.query.weight").mul_(60)
    weights = attention_maps(model, arrays, {})[0]["image"][0, 0]
    assert weights.max() > 0.99
    row, column = divmod(int(weights.argmax()), 3)

    def first_read(pictures: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = model.cross_attends[0].register_forward_hook(
            lambda _module, _inputs, output: seen.append(output)
        )
        model({"image": pictures}, {}, "all")
        hook.remove()
        return seen[0][0, 0]

    changed = {}
    for place in [(i, j) for i in range(4) for j in range(3)]:
        pictures = arrays["image"].clone()
        pictures[0, 2 * place[0], 2 * place[1]] += 30
        changed[place] = (first_read(pictures) - first_read(arrays["image"])).abs().sum().item()
    assert max(changed, key=lambda place: changed[place]) == (row, column)


def test_separable_and_dense_models_have_the_same_maps() -> None:
    model, arrays = build_model(CONFIG)
    other, _ = build_model(replace(CONFIG, cross_attention="separable"))
    for one, two in zip(attention_maps(model, arrays, {}), attention_maps(other, arrays, {}), strict=True):
        for name, weights in one.items():
            torch.testing.assert_close(weights, two[name], rtol=1e-9, atol=1e-12)
