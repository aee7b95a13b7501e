"""Regression tests of performance without timing: large arrays, keys built twice, synchronisation, and launches.

A dispatch mode records every operation of forward and backward and what it allocates. Sizes are chosen such that an
array that must not be allocated is larger than all that must.
"""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perceiver_dist.modalities import ImageInput, VideoInput
from perceiver_dist.model import factored, self_attention, separable
from perceiver_dist.model.compilation import compile_layers
from perceiver_dist.model.inputs import read_presence, token_channels
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver

BATCH, SIDE, LATENTS, WIDTH = 4, 64, 128, 16
TOKENS = SIDE * SIDE
IMAGE = ImageInput(height=SIDE, width=SIDE, channels=3, patch=1, bands=4)
TILE = 2**15
SYNCHRONISING = ("aten._local_scalar_dense", "aten.nonzero")
"""Operations whose result the host has to wait for; on a GPU each waits until all queued kernels are done."""
LAUNCHLESS = ("aten.detach", "aten.empty", "aten.empty_like", "aten.new_empty", "aten._unsafe_view")
"""Operations beside views that start no kernel."""


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
        self.launches = 0
        self.sizes: list[int] = []
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = str(operation).rpartition(".")[0]
        self.operations[name] += 1
        self.launches += not operation.is_view and name not in LAUNCHLESS
        if not operation.is_view:
            allocated = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.sizes += [tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in allocated]
            self.shapes += [tensor.shape for tensor in allocated]
        return result


def record_step(
    options: ModelConfig, precision: str = "fp32", *, compiled: bool = False
) -> AllocationRecorder:
    torch.manual_seed(0)
    model = Perceiver(options, {"source": 10})
    if compiled:
        # Within a dispatch mode torch runs what it would compile operation by operation.
        compile_layers(model)
    arrays = {
        name: torch.randint(0, 256, (BATCH, *spec.array_shape), dtype=torch.uint8)
        for name, spec in options.modalities.items()
    }
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    with AllocationRecorder() as recorder:
        with bf16:
            logits = model(arrays, {}, "source")
        torch.autograd.backward(logits.float().logsumexp(1).sum())
    return recorder


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles small enough to be several, and one kernel for self-attention, which some CPUs do by products."""
    monkeypatch.setattr(self_attention, "_MULTIPLIES_BF16", False)
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
    assert record_step(config("separable"), "bf16").operations["aten.exp_"] == 0


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


@pytest.mark.parametrize(
    ("precision", "cross_attends", "most"),
    [("fp32", 2, 320), ("bf16", 2, 420), ("fp32", 8, 2560), ("bf16", 8, 2760)],
)
def test_a_step_launches_few_kernels(precision: str, cross_attends: int, most: int) -> None:
    """The default model, and the paper's on ImageNet but for its sizes; some operations take more than one kernel."""
    layers = 2 if cross_attends == 2 else 6
    options = replace(config("dense", cross_attends), latents=8, self_attends_per_block=layers)
    assert record_step(options, precision).launches <= most


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_are_cast_once_for_all_repetitions(compiled: bool) -> None:
    casts = [
        record_step(
            replace(config("dense"), latents=8, latent_block_repeats=repeats), "bf16", compiled=compiled
        ).operations["aten._to_copy"]
        for repeats in (1, 4)
    ]
    # Only layer norms cast what differs from one repetition to the next.
    assert casts[1] - casts[0] < 20


def test_a_forward_pass_on_cuda_reads_nothing_back() -> None:
    """On fake tensors a value that the host asks for is an error."""
    model, mode = Perceiver(config("dense"), {"source": 10}), FakeTensorMode()
    on_cuda = partial(torch.empty_like, device="cuda")
    with mode:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(on_cuda(torch.empty(parameter.shape))))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, on_cuda(torch.empty(buffer.shape, dtype=buffer.dtype)))
        image = torch.zeros(BATCH, SIDE, SIDE, 3, dtype=torch.uint8, device="cuda")
        assert model({"image": image}, {}, "source").device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            model({"image": image}, {"image": torch.ones(BATCH, dtype=torch.bool, device="cuda")}, "source")


def test_masks_on_the_host_need_no_device_if_no_sample_lacks_a_modality() -> None:
    present = {"image": torch.ones(BATCH, dtype=torch.bool)}
    # There need not be a GPU: nothing is sent to it.
    assert read_presence(present, ["image", "audio"], BATCH, torch.device("cuda")) is None


@pytest.mark.parametrize("path", ["dense", "factored", "separable"])
def test_a_step_never_synchronises_with_the_host(path: str) -> None:
    operations = record_step(config(path)).operations
    assert {name: operations[name] for name in SYNCHRONISING} == dict.fromkeys(SYNCHRONISING, 0)


def test_the_recorder_sees_synchronisation() -> None:
    with AllocationRecorder() as recorder:
        torch.ones(()).item()
        torch.ones(2).nonzero()
    assert all(recorder.operations[name] == 1 for name in SYNCHRONISING)
