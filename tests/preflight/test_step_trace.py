"""Trace of a training step: against real steps on CPUs, allocation by allocation, and its own walk of the graph."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput, VideoInput
from perceiver_dist.model.model_config import CrossAttentionPath, ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.precision import autocast
from perceiver_dist.preflight.step_trace import AllocationTrace, trace_step, walk_backward

IMAGE = ModelConfig(latents=64, self_attends_per_block=1, image=ImageInput(32, 32, 3, bands=16))
SHAPES = {
    "image": replace(IMAGE, self_attends_per_block=2),
    "shared by four": replace(IMAGE, latents=96, width=96, cross_attends=4),
    "learned positions": replace(IMAGE, image=ImageInput(28, 28, position="learned", position_channels=34)),
    "decoder": replace(IMAGE, cross_attends=1, latent_block_repeats=3, readout="decoder"),
    "video, spectrogram": ModelConfig(
        latents=48,
        self_attends_per_block=1,
        video=VideoInput(frames=4, height=32, width=32, patch=(1, 4, 4), bands=4),
        audio=AudioInput(samples=4096, segment=128, mel_bands=16),
    ),
    "points": ModelConfig(latents=64, self_attends_per_block=1, points=PointCloudInput(points=512)),
}
PATHS: tuple[CrossAttentionPath, ...] = ("dense", "factored", "separable")
HEADS = (("source", 10), ("other", 100))
BATCH = 8


def real_arrays(config: ModelConfig, batch: int = BATCH) -> dict[str, Tensor]:
    return {
        name: torch.zeros((batch, *spec.array_shape), dtype=getattr(torch, spec.array_dtype))
        for name, spec in config.modalities.items()
    }


def loss_of(model: Perceiver, arrays: dict[str, Tensor], precision: str) -> Tensor:
    with autocast(torch.device("cpu"), precision):
        logits = model(arrays, {}, "source")
    return logits.float().logsumexp(1).sum()


def real_peak(config: ModelConfig, precision: str) -> int:
    """Return the peak of a step on real tensors with autograd's own engine."""
    model = Perceiver(config, dict(HEADS))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with AllocationTrace() as trace:
        trace.ignore([*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())])
        arrays = real_arrays(config)
        torch.autograd.backward(loss_of(model, arrays, precision))
    return trace.peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_peak_is_that_of_a_real_step(
    shape: str, path: CrossAttentionPath, checkpointing: bool, precision: Literal["fp32", "bf16"]
) -> None:
    config = replace(SHAPES[shape], cross_attention=path, activation_checkpointing=checkpointing)
    traced = trace_step(config, HEADS, tuple(config.modalities), BATCH, precision, "cpu")
    assert max(traced) == pytest.approx(real_peak(config, precision), rel=0.05)


def test_bf16_takes_less_than_fp32_and_more_than_half() -> None:
    fp32, bf16 = (max(trace_step(IMAGE, HEADS, ("image",), 64, p, "cuda")) for p in ("fp32", "bf16"))
    assert 0.5 * fp32 < bf16 < 0.8 * fp32


@pytest.mark.parametrize("path", PATHS)
def test_allocations_do_not_depend_on_the_micro_batch(path: CrossAttentionPath) -> None:
    config = replace(IMAGE, cross_attention=path, image=ImageInput(64, 64, 3, bands=4))
    for device in ("cpu", "cuda"):
        few, many = (trace_step(config, HEADS, ("image",), batch, "bf16", device) for batch in (2, 300))
        assert len(few) == len(many)
        assert max(few) < max(many)


def test_kernels_are_traced_without_a_scores_array() -> None:
    """On CUDA the Triton kernels keep scores in registers; plain tiles would take 8 MiB each here."""
    config = replace(
        IMAGE, latents=512, width=16, cross_attention="separable", image=ImageInput(64, 64, 3, bands=4)
    )
    kernels, tiles = (
        max(trace_step(config, HEADS, ("image",), 1, "fp32", device)) for device in ("cuda", "cpu")
    )
    assert kernels < 512 * 64 * 64 * 4 < tiles + kernels


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_the_walk_of_the_graph_gives_the_gradients_of_autograd(
    path: CrossAttentionPath, checkpointing: bool
) -> None:
    config = replace(SHAPES["decoder"], cross_attention=path, activation_checkpointing=checkpointing)
    model = Perceiver(config, dict(HEADS))
    arrays = {
        name: torch.randint(0, 256, array.shape, dtype=torch.uint8)
        for name, array in real_arrays(config).items()
    }
    torch.autograd.backward(loss_of(model, arrays, "bf16"))
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    walk_backward(lambda: loss_of(model, arrays, "bf16"))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


def test_a_trace_counts_storages_once_and_until_they_are_freed() -> None:
    outside = torch.zeros(1000)
    with AllocationTrace() as trace:
        trace.ignore([outside])
        array = torch.zeros(1000) + outside.view(10, 100).flatten()
        view = array.view(10, 100)
        assert trace.in_use == 4096
        del array
        assert trace.in_use == 4096
        del view
        assert trace.in_use == 0
        assert trace.peak == 8192


def test_a_trace_leaves_no_trace() -> None:
    from perceiver_dist.model import factored, separable

    before = (factored._tiles, separable._tiles, torch.cuda.amp.common.amp_definitely_not_available)
    state = torch.get_rng_state()
    trace_step(IMAGE, HEADS, ("image",), 3, "bf16", "cuda")
    assert (factored._tiles, separable._tiles, torch.cuda.amp.common.amp_definitely_not_available) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.is_autocast_enabled("cuda")
