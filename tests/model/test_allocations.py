"""Regression tests of performance without timing: large arrays, keys built twice, and synchronisation within a step.

A dispatch mode records every operation of forward and backward and what it allocates. Sizes are chosen such that an
array that must not be allocated is larger than all that must.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perceiver_dist.modalities import ImageInput, VideoInput
from perceiver_dist.model import factored, self_attention, separable
from perceiver_dist.model.inputs import token_channels
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver

BATCH, SIDE, LATENTS, WIDTH = 4, 64, 128, 16
TOKENS = SIDE * SIDE
IMAGE = ImageInput(height=SIDE, width=SIDE, channels=3, patch=1, bands=4)
TILE = 2**15
SYNCHRONISING = ("aten._local_scalar_dense", "aten.nonzero")
"""Operations whose result the host has to wait for; on a GPU each waits until all queued kernels are done."""


def config(path: str, cross_attends: int = 2, **modalities: Any) -> ModelConfig:
    return ModelConfig(
        latents=LATENTS,
        width=WIDTH,
        cross_attends=cross_attends,
        heads=4,
        cross_attention=path,  # type: ignore[arg-type]
        **(modalities or {"image": IMAGE}),
    )


CHANNELS = token_channels(config("dense"))


class AllocationRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Dispatch mode that counts operations and records sizes and shapes of the arrays that they allocate."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.operations: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.operations[str(operation).rpartition(".")[0]] += 1
        if not operation.is_view:
            allocated = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.sizes += [tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in allocated]
            self.shapes += [tensor.shape for tensor in allocated]
        return result


def record_step(options: ModelConfig) -> AllocationRecorder:
    torch.manual_seed(0)
    model = Perceiver(options, {"source": 10})
    arrays = {
        name: torch.randint(0, 256, (BATCH, *spec.array_shape), dtype=torch.uint8)
        for name, spec in options.modalities.items()
    }
    with AllocationRecorder() as recorder:
        torch.autograd.backward(model(arrays, {}, "source").logsumexp(1).sum())
    return recorder


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (factored, separable):
        monkeypatch.setitem(module._TILE_SCORES, "cpu", TILE)


@pytest.mark.parametrize("path", ["factored", "separable"])
def test_neither_tokens_nor_all_scores_are_allocated(path: str) -> None:
    largest = max(record_step(config(path)).sizes)
    assert largest < BATCH * TOKENS * CHANNELS / 4
    assert largest < TOKENS * LATENTS / 4


def test_the_recorder_sees_the_tokens_of_the_dense_path() -> None:
    assert max(record_step(config("dense")).sizes) >= BATCH * TOKENS * CHANNELS


def test_fp32_keeps_the_operations_whose_bits_golden_values_hold() -> None:
    assert record_step(config("separable")).operations["aten.exp_"] > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert record_step(config("separable")).operations["aten.exp_"] == 0


def test_self_attention_by_products_holds_the_scores_of_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_attention, "_CHUNK_SCORES", 1)
    inputs = [torch.randn(BATCH, 2, LATENTS, 4, requires_grad=True) for _ in range(3)]
    kept: list[int] = []

    def keep(array: Tensor) -> Tensor:
        kept.append(array.numel())
        return array

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda array: array),
        AllocationRecorder() as recorder,
    ):
        torch.autograd.backward(self_attention._Attention.apply(*inputs).sum())
    assert max(recorder.sizes) == 2 * LATENTS * LATENTS
    # What is kept for backward: query, key, value, the result, and a peak for each row.
    assert sum(kept) == 4 * inputs[0].numel() + BATCH * 2 * LATENTS


def test_tokens_of_a_video_are_not_allocated() -> None:
    video = VideoInput(frames=8, height=32, width=32, patch=(1, 1, 1), bands=4)
    options = config("separable", video=video)
    tokens = 8 * 32 * 32
    largest = max(record_step(options).sizes)
    assert largest < BATCH * tokens * token_channels(options) / 4
    assert largest < tokens * LATENTS / 4


def test_keys_and_values_are_built_once_for_all_cross_attends() -> None:
    """Count arrays of the size of the padded tokens; with Fourier positions no other array has that size."""
    padded = CHANNELS + -CHANNELS % 8
    counts = []
    for cross_attends in (1, 4):
        recorder = record_step(config("dense", cross_attends))
        forward = [shape for shape in recorder.shapes if shape[-2:] == (TOKENS, padded)]
        backward_of_attention = 2 * cross_attends  # Gradients of keys and of values, which are discarded.
        counts.append(len(forward) - backward_of_attention)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("path", ["dense", "factored", "separable"])
def test_a_step_never_synchronises_with_the_host(path: str) -> None:
    operations = record_step(config(path)).operations
    assert {name: operations[name] for name in SYNCHRONISING} == dict.fromkeys(SYNCHRONISING, 0)


def test_the_recorder_sees_synchronisation() -> None:
    with AllocationRecorder() as recorder:
        torch.ones(()).item()
        torch.ones(2).nonzero()
    assert all(recorder.operations[name] == 1 for name in SYNCHRONISING)
