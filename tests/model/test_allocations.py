"""What must not come back unnoticed: large arrays, keys made twice, and reading single numbers in the midst of a step.

Nothing is timed. Every operation that torch carries out, backward ones too, passes a dispatcher that notes what was
made; the sizes are chosen such that what must not be made is larger than all that must.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perceiver_dist.modalities import ImageInput, VideoInput
from perceiver_dist.model import factored, separable
from perceiver_dist.model.inputs import token_channels
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.perceiver import Perceiver

BATCH, SIDE, LATENTS, WIDTH = 4, 64, 128, 16
TOKENS = SIDE * SIDE
IMAGE = ImageInput(height=SIDE, width=SIDE, channels=3, patch=1, bands=4)
TILE = 2**15
READS = ("aten._local_scalar_dense", "aten.nonzero")
"""Operations whose result Python has to wait for; on a GPU each empties the queue of work."""


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


class Made(TorchDispatchMode):
    """Counts operations, and notes sizes and shapes of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.values: list[int] = []
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.operations[str(operation).rpartition(".")[0]] += 1
        if not operation.is_view:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.values += [tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in made]
            self.shapes += [tensor.shape for tensor in made]
        return result


def made_in_a_step(options: ModelConfig) -> Made:
    torch.manual_seed(0)
    model = Perceiver(options, {"source": 10})
    arrays = {
        name: torch.randint(0, 256, (BATCH, *spec.array_shape), dtype=torch.uint8)
        for name, spec in options.modalities.items()
    }
    with Made() as made:
        torch.autograd.backward(model(arrays, {}, "source").logsumexp(1).sum())
    return made


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (factored, separable):
        monkeypatch.setitem(module._TILE_SCORES, "cpu", TILE)


@pytest.mark.parametrize("path", ["factored", "separable"])
def test_neither_the_tokens_nor_all_scores_are_ever_made(path: str) -> None:
    largest = max(made_in_a_step(config(path)).values)
    assert largest < BATCH * TOKENS * CHANNELS / 4
    assert largest < TOKENS * LATENTS / 4


def test_the_dispatcher_sees_the_tokens_where_they_are_made() -> None:
    assert max(made_in_a_step(config("dense")).values) >= BATCH * TOKENS * CHANNELS


def test_a_video_s_tokens_are_not_made_either() -> None:
    video = VideoInput(frames=8, height=32, width=32, patch=(1, 1, 1), bands=4)
    options = config("separable", video=video)
    tokens = 8 * 32 * 32
    largest = max(made_in_a_step(options).values)
    assert largest < BATCH * tokens * token_channels(options) / 4
    assert largest < tokens * LATENTS / 4


def test_keys_and_values_are_made_once_however_often_they_are_read() -> None:
    """The tokens' one array, padded; the gradient of position features would be as large if there were one."""
    padded = CHANNELS + -CHANNELS % 8
    counts = []
    for cross_attends in (1, 4):
        made = made_in_a_step(config("dense", cross_attends))
        forward = [shape for shape in made.shapes if shape[-2:] == (TOKENS, padded)]
        backward_of_attention = 2 * cross_attends  # Gradients of keys and of values, thrown away.
        counts.append(len(forward) - backward_of_attention)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("path", ["dense", "factored", "separable"])
def test_a_step_of_the_model_never_waits_for_a_number(path: str) -> None:
    operations = made_in_a_step(config(path)).operations
    assert {name: operations[name] for name in READS} == dict.fromkeys(READS, 0)


def test_the_dispatcher_sees_a_number_that_is_read() -> None:
    with Made() as made:
        torch.ones(()).item()
        torch.ones(2).nonzero()
    assert all(made.operations[name] == 1 for name in READS)
