"""Perceiver: every attention path against the reference, missing modalities, precision, gradients and errors."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import HEADS, SMALL, random_arrays, random_model, reference, small_configs
from torch import Tensor

from perceiver_dist.errors import InternalError, UserError
from perceiver_dist.modalities import MODALITIES
from perceiver_dist.model import factored, separable
from perceiver_dist.model.model_config import CrossAttentionPath, ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.positions import token_order

PATHS = ("dense", "factored", "separable")
ALL = ModelConfig(latents=4, width=8, heads=2, **SMALL)
LATER = replace(
    ALL,
    latent_block_repeats=2,
    readout="decoder",
    image=replace(SMALL["image"], position="learned", position_channels=4, permutation_seed=1),
    audio=replace(SMALL["audio"], permutation_seed=2),
    video=replace(SMALL["video"], position="learned", position_channels=3),
)
"""All options that were added after the paper's ImageNet model, combined."""


def with_path(model: Perceiver, path: CrossAttentionPath) -> Perceiver:
    model.config = replace(model.config, cross_attention=path)
    return model


def gradients(logits: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = torch.arange(logits.numel(), dtype=logits.dtype).view_as(logits)
    loss = (logits * weights.cos()).sum()
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if grad is None else grad
        for (name, p), grad in zip(parameters.items(), grads, strict=True)
    }


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=40, deadline=None)
@given(config=small_configs(), data=st.data())
def test_outputs_and_gradients_match_the_reference_in_fp64(
    path: CrossAttentionPath, config: ModelConfig, data: st.DataObject
) -> None:
    model = with_path(random_model(config).double(), path)
    names = data.draw(st.sets(st.sampled_from(list(config.modalities)), min_size=1))
    arrays = {name: array for name, array in random_arrays(config, 3).items() if name in names}
    masks = st.lists(st.booleans(), min_size=3, max_size=3).map(torch.tensor)
    present = {name: data.draw(masks) for name in sorted(names) if data.draw(st.booleans())}
    parameters = dict(model.named_parameters())
    expected = reference(parameters, config, arrays, present, "clips")
    logits = model(arrays, present, "clips")
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    expected_gradients = gradients(expected, parameters)
    for name, gradient in gradients(logits, parameters).items():
        size = max(1.0, expected_gradients[name].abs().max().item())
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-10 * size, rtol=0, msg=name)


@pytest.mark.parametrize(("path", "module"), [("factored", factored), ("separable", separable)])
@pytest.mark.parametrize("scores", [1, 8, 24, 100])
def test_the_tile_size_does_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch, path: CrossAttentionPath, module: ModuleType, scores: int
) -> None:
    model = with_path(random_model(ALL).double(), path)
    arrays, parameters = random_arrays(ALL, 3), dict(model.named_parameters())
    expected = model(arrays, {}, "clips")
    expected_gradients = gradients(expected, parameters)
    monkeypatch.setitem(module._TILE_SCORES, "cpu", scores)
    logits = model(arrays, {}, "clips")
    torch.testing.assert_close(logits, expected, atol=1e-12, rtol=0)
    for name, gradient in gradients(logits, parameters).items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("missing", MODALITIES)
def test_the_array_of_a_missing_modality_has_no_effect(path: CrossAttentionPath, missing: str) -> None:
    model = with_path(random_model(ALL), path)
    arrays = random_arrays(ALL, 2)
    present = {missing: torch.tensor([False, True])}
    before = model(arrays, present, "clips")
    arrays[missing][0] = 17
    assert torch.equal(model(arrays, present, "clips"), before)
    arrays[missing][1] = 17
    assert not torch.equal(model(arrays, present, "clips")[1], before[1])


@pytest.mark.parametrize("path", PATHS)
def test_a_sample_without_modalities_is_finite_and_independent_of_its_arrays(
    path: CrossAttentionPath,
) -> None:
    model = with_path(random_model(ALL), path)
    present = {name: torch.tensor([False, True]) for name in MODALITIES}
    arrays = random_arrays(ALL, 2)
    logits = model(arrays, present, "clips")
    logits.sum().backward()
    for array in arrays.values():
        array[0] = 3
    assert torch.equal(model(arrays, present, "clips"), logits)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("path", PATHS)
def test_permuting_tokens_with_fourier_positions_changes_only_rounding(path: CrossAttentionPath) -> None:
    model = with_path(random_model(ALL).double(), path)
    permuted = replace(
        ALL, **{name: replace(getattr(ALL, name), permutation_seed=7) for name in ("image", "audio", "video")}
    )
    other = with_path(Perceiver(permuted, HEADS).double(), path)
    other.load_state_dict(model.state_dict())
    arrays = random_arrays(ALL, 2)
    before = model(arrays, {}, "clips")
    torch.testing.assert_close(other(arrays, {}, "clips"), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_permuting_tokens_equals_permuting_learned_positions(path: CrossAttentionPath) -> None:
    spec = replace(SMALL["image"], position="learned", position_channels=4)
    config = replace(ALL, image=spec, audio=None, video=None)
    model = with_path(random_model(config).double(), path)
    permuted = replace(config, image=replace(spec, permutation_seed=7))
    other = with_path(Perceiver(permuted, HEADS).double(), path)
    other.load_state_dict(model.state_dict())
    arrays, position = random_arrays(config, 2), other.positions.get_parameter("image")
    before = model(arrays, {}, "clips")
    assert (other(arrays, {}, "clips") - before).abs().max() > 1e-3
    assert permuted.image is not None
    position.data = position.data[token_order(permuted.image)]
    torch.testing.assert_close(other(arrays, {}, "clips"), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize("path", ["dense", "factored"])
def test_tokens_permuted_with_their_positions_give_the_same_logits(path: CrossAttentionPath) -> None:
    config = replace(ALL, image=replace(SMALL["image"], patch=1), audio=None, video=None, points=None)
    model = with_path(random_model(config).double(), path)
    array = random_arrays(config, 2)["image"]
    before = model({"image": array}, {}, "clips")
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    permuted = array.flatten(1, 2)[:, order].view_as(array)
    assert (model({"image": permuted}, {}, "clips") - before).abs().max() > 1e-3
    tokenizer = model.tokenizers["image"]
    tokenizer.position = tokenizer.get_buffer("position")[order]
    torch.testing.assert_close(model({"image": permuted}, {}, "clips"), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_the_order_of_points_has_no_effect_but_their_coordinates_do(path: CrossAttentionPath) -> None:
    model = with_path(random_model(replace(ALL, image=None, audio=None, video=None)).double(), path)
    points = random_arrays(model.config, 2)["points"]
    before = model({"points": points}, {}, "clips")
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    torch.testing.assert_close(model({"points": points[:, order]}, {}, "clips"), before, atol=1e-12, rtol=0)
    moved = points.clone()
    moved[:, 2, 1] += 0.01
    assert (model({"points": moved}, {}, "clips") - before).abs().max() > 1e-4


@pytest.mark.parametrize("source", HEADS)
@pytest.mark.parametrize("names", [("image",), ("audio", "video"), ("points",), MODALITIES])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("config", [ALL, LATER], ids=["all", "later"])
def test_every_parameter_gets_a_gradient_in_every_step(
    config: ModelConfig, path: CrossAttentionPath, names: tuple[str, ...], source: str
) -> None:
    model = with_path(random_model(config), path)
    arrays = {name: array for name, array in random_arrays(ALL, 2).items() if name in names}
    model(arrays, {}, source).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    unused = "heads.pictures.weight" if source == "clips" else "heads.clips.weight"
    gradient = model.get_parameter(unused).grad
    assert gradient is not None
    assert not gradient.any()


@pytest.mark.parametrize("config", [ALL, LATER], ids=["all", "later"])
def test_modules_run_in_the_same_order_in_every_step(config: ModelConfig) -> None:
    model, calls = random_model(config), []
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    arrays = random_arrays(ALL, 2)
    model(arrays, {}, "clips")
    first = calls.copy()
    calls.clear()
    model({"audio": arrays["audio"]}, {}, "pictures")
    assert calls == first
    assert set(calls) == {n for n, m in model.named_modules() if list(m.parameters(recurse=False))}


@pytest.mark.parametrize("config", [ALL, LATER], ids=["all", "later"])
@pytest.mark.parametrize("path", PATHS)
def test_activation_checkpointing_is_bit_identical(path: CrossAttentionPath, config: ModelConfig) -> None:
    model = with_path(random_model(config), path)
    arrays, parameters = random_arrays(ALL, 2), dict(model.named_parameters())
    plain = gradients(model(arrays, {}, "clips"), parameters)
    model.config = replace(model.config, activation_checkpointing=True)
    for name, gradient in gradients(model(arrays, {}, "clips"), parameters).items():
        assert torch.equal(gradient, plain[name]), name


@pytest.mark.parametrize("config", [ALL, LATER], ids=["all", "later"])
@pytest.mark.parametrize("path", PATHS)
def test_bf16_is_close_to_fp32_forward_and_backward(path: CrossAttentionPath, config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = with_path(Perceiver(config, HEADS), path)
    arrays, parameters = random_arrays(ALL, 4), dict(model.named_parameters())
    exact = model(arrays, {}, "clips")
    exact_gradients = gradients(exact, parameters)
    logits = model.bfloat16()(arrays, {}, "clips")
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, atol=0.1, rtol=0.05)
    for name, gradient in gradients(logits, dict(model.named_parameters())).items():
        difference = (gradient.float() - exact_gradients[name]).norm()
        assert difference <= 0.2 * exact_gradients[name].norm() + 0.02, name


def test_positions_stay_fp32_in_a_bf16_model() -> None:
    model = Perceiver(ALL, HEADS)
    before = model.get_buffer("tokenizers.video.position").clone()
    assert torch.equal(model.bfloat16().get_buffer("tokenizers.video.position"), before)


def test_weights_depend_on_the_seed_alone_and_no_buffer_is_saved() -> None:
    torch.manual_seed(5)
    first = Perceiver(ALL, HEADS)
    torch.manual_seed(5)
    second = Perceiver(ALL, HEADS)
    assert set(first.state_dict()) == {name for name, _ in first.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_initial_weights_have_the_authors_standard_deviation() -> None:
    torch.manual_seed(0)
    model = Perceiver(replace(ALL, width=256, latents=64), HEADS)
    weight = model.get_parameter("cross_attends.0.dense.expand.weight")
    assert weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert weight.abs().max().item() <= 2 * 256**-0.5 / 0.8796
    assert model.latents.std().item() == pytest.approx(0.02, rel=0.03)
    assert not model.get_parameter("cross_attends.0.dense.expand.bias").any()


@pytest.mark.parametrize(
    ("arrays", "present", "source", "text"),
    [
        (
            {"audio": torch.zeros(2, 40, dtype=torch.int16)},
            {},
            "films",
            "'films' has no head.*clips, pictures",
        ),
        ({}, {}, "clips", "pass at least one"),
        ({"smell": torch.zeros(2)}, {}, "clips", r"\['smell'\].*image, audio, video, points"),
        ({"audio": torch.zeros(2, 40)}, {}, "clips", r"audio: array of torch.float32.*expected torch.int16"),
        ({"audio": torch.zeros(2, 39, dtype=torch.int16)}, {}, "clips", r"\(39,\)\).*\(40,\)\)"),
        (
            {"audio": torch.zeros(2, 40, dtype=torch.int16)},
            {"audio": torch.ones(3, dtype=torch.bool)},
            "clips",
            r"present\['audio'\].*\(3,\).*\(2,\)",
        ),
    ],
)
def test_invalid_inputs_are_rejected(
    arrays: dict[str, Tensor], present: dict[str, Tensor], source: str, text: str
) -> None:
    with pytest.raises(InternalError, match=text):
        random_model(ALL)(arrays, present, source)


@pytest.mark.parametrize(
    ("heads", "kind", "text"),
    [
        ({}, InternalError, "no head"),
        ({"a": 0}, InternalError, "0 classes"),
        ({"a.b": 2}, UserError, "'a.b'"),
        ({"items": 2}, UserError, "'items'"),
    ],
)
def test_invalid_heads_are_rejected(heads: dict[str, int], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        Perceiver(ALL, heads)


def test_the_model_does_not_import_the_training_stack() -> None:
    code = (
        "import sys, perceiver_dist.model.perceiver, perceiver_dist.model.cost\n"
        "print([m for m in ('ray', 'deepspeed', 'mlflow', 'pipelines', 'perceiver_dist.training') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("config", [ALL, LATER], ids=["all", "later"])
@pytest.mark.parametrize("path", PATHS)
def test_autocast_to_bf16_keeps_parameters_in_fp32_and_stays_close(
    path: CrossAttentionPath, config: ModelConfig
) -> None:
    torch.manual_seed(0)
    model = with_path(Perceiver(config, HEADS), path)
    arrays, parameters = random_arrays(ALL, 4), dict(model.named_parameters())
    exact = model(arrays, {}, "clips")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(arrays, {}, "clips")
    torch.testing.assert_close(logits.float(), exact, atol=0.1, rtol=0.05)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(logits, parameters).values())
