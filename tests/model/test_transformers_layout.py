"""Conversion from and to `transformers`: equal logits and gradients, round trips, and rejected models."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, PointCloudInput
from perceiver_dist.model.inputs import Tokenizer
from perceiver_dist.model.model_config import CrossAttentionPath
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.transformers_layout import from_transformers, to_transformers

transformers = pytest.importorskip("transformers", reason="run by `make test-transformers`")
PerceiverConfig = transformers.PerceiverConfig
PerceiverForImageClassificationFourier = transformers.PerceiverForImageClassificationFourier
processing = importlib.import_module("transformers.models.perceiver.image_processing_pil_perceiver")
PerceiverImageProcessorPil = processing.PerceiverImageProcessorPil

SIZES = {
    "num_latents": 7,
    "d_latents": 24,
    "d_model": 261,
    "num_blocks": 3,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    model = PerceiverForImageClassificationFourier(PerceiverConfig(num_labels=5, **SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def as_ours(theirs: Any, height: int, width: int) -> Perceiver:
    config, weights = from_transformers(theirs.state_dict(), theirs.config.to_dict(), "imagenet")
    assert config.image is not None
    config = replace(config, image=replace(config.image, height=height, width=width))
    model = Perceiver(config, {"imagenet": theirs.config.num_labels})
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("path", ["dense", "factored"])
def test_converted_weights_give_the_logits_of_transformers(theirs: Any, path: CrossAttentionPath) -> None:
    model = as_ours(theirs, 14, 10)
    model.config = replace(model.config, cross_attention=path)
    pixels = torch.randint(
        0, 256, (3, 14, 10, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    processor = PerceiverImageProcessorPil(do_resize=False, do_center_crop=False)
    scaled = processor(list(pixels.permute(0, 3, 1, 2).numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = theirs(scaled).logits
        logits = model({"image": pixels}, {}, "imagenet")
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_gradients_match_those_of_transformers(theirs: Any) -> None:
    model = as_ours(theirs, 6, 8)
    image, tokenizer = model.config.image, model.tokenizers["image"]
    assert image is not None
    assert isinstance(tokenizer, Tokenizer)
    tokenizer.spec = image = replace(image, pixel_scale="symmetric")
    model.config = replace(model.config, image=image)
    pixels = torch.randint(
        0, 256, (2, 6, 8, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    model({"image": pixels}, {}, "imagenet").sin().sum().backward()
    theirs.zero_grad()
    theirs(pixels.permute(0, 3, 1, 2) / 127.5 - 1).logits.sin().sum().backward()
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    _, expected = from_transformers(grads, theirs.config.to_dict(), "imagenet")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_weights_survive_a_round_trip_unchanged(theirs: Any, tmp_path: Path) -> None:
    config, weights = from_transformers(theirs.state_dict(), theirs.config.to_dict(), "imagenet")
    back, config_json = to_transformers(weights, config, "imagenet")
    save_file({name: tensor.contiguous() for name, tensor in back.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_json))
    loaded, report = PerceiverForImageClassificationFourier.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    assert loaded.config.num_labels == 5
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_model_saved_by_transformers_can_be_read(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    config_json = json.loads((tmp_path / "config.json").read_text())
    config, weights = from_transformers(load_file(tmp_path / "model.safetensors"), config_json, "pictures")
    Perceiver(config, {"pictures": 5}).load_state_dict(weights)
    sizes = (
        config.latents,
        config.width,
        config.latent_block_repeats,
        config.self_attends_per_block,
        config.heads,
    )
    assert sizes == (7, 24, 3, 2, 4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_cross_attention_heads": 2}, "num_cross_attention_heads is 2, must be 1"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', must be 'gelu'"),
        ({"num_self_attends_per_block": 3}, "lacks 'perceiver.encoder.self_attends.2"),
        ({"num_self_attends_per_block": 1}, "has 'perceiver.encoder.self_attends.1"),
    ],
)
def test_unsupported_models_of_transformers_are_rejected(
    theirs: Any, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        from_transformers(theirs.state_dict(), theirs.config.to_dict() | change, "imagenet")
    with pytest.raises(UserError, match="has no num_latents"):
        from_transformers(theirs.state_dict(), {"num_cross_attention_heads": 1}, "imagenet")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cross_attends": 2}, r"model\.cross_attends is 2, must be 1"),
        ({"readout": "mean"}, r"model\.readout is 'mean', must be 'decoder'"),
        ({"audio": AudioInput()}, r"model\.audio is AudioInput"),
        ({"points": PointCloudInput()}, r"model\.points is PointCloudInput"),
        ({"image": None, "audio": None}, r"model\.image is None"),
    ],
)
def test_options_that_transformers_lacks_are_rejected(
    theirs: Any, options: dict[str, Any], text: str
) -> None:
    config, weights = from_transformers(theirs.state_dict(), theirs.config.to_dict(), "imagenet")
    with pytest.raises(UserError, match=text):
        to_transformers(weights, replace(config, **options), "imagenet")
    assert config.image is not None
    with pytest.raises(UserError, match=r"model\.image is ImageInput.*position='learned'"):
        to_transformers(weights, replace(config, image=replace(config.image, position="learned")), "imagenet")
    with pytest.raises(UserError, match="source 'films' has no head"):
        to_transformers(weights, config, "films")
