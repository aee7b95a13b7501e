"""Benchmark of the kernels of separable cross-attention on a GPU: times, what the card allows, and errors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor

from perceiver_dist.benchmarks.model_settings import SETTINGS
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError
from perceiver_dist.model import separable

_SETTINGS = ("imagenet", "audioset_video")
_FLOPS_PER_CYCLE = 8192
"""FLOPs of a multiprocessor's tensor cores per cycle, dense, in bfloat16: 990 TFLOP/s of an H100 at 1.83 GHz."""
_PLAIN = partial(separable._Attention.apply, True)
"""Separable attention in plain torch, operation by operation, as runs in fp32 use it."""
_DENSE_CHANNELS = 256
"""The most that torch's fast kernels of dense attention take; the 261 channels of ImageNet's tokens are more."""


@dataclass(frozen=True)
class _Pass:
    """What a pass needs at least.

    Attributes:
        name: Name in the table.
        operations: Operations per score, on 128 lanes of a multiprocessor, beside one exponential, on 16.
        products: Matrix products of scores and features.
        errors: Places of its results among those of `_errors`.
    """

    name: str
    operations: int
    products: int
    errors: slice

    def cycles(self, channels: int) -> float:
        """Return the cycles of one multiprocessor for a score, for features of this many channels."""
        return max(self.operations / 128, 1 / 16, 2 * self.products * channels / _FLOPS_PER_CYCLE)


_PASSES = (
    _Pass("forward", operations=10, products=2, errors=slice(0, 4)),
    _Pass("backward", operations=12, products=3, errors=slice(4, None)),
)


@dataclass(frozen=True)
class _Case:
    """Arrays of one cross-attend: those of `grid_attention.attend_by_kernels`, and gradients of its results."""

    arguments: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def to(self, dtype: torch.dtype, samples: int) -> "_Case":
        """Return the first samples in another dtype."""
        first = [
            tuple(array[:samples].to(dtype) for array in arrays)
            for arrays in (self.arguments, self.gradients)
        ]
        return _Case(*first)


def measure_kernels(
    batch: int = 32, precision: Literal["bf16", "fp32"] = "bf16", repeats: int = 20, clock_ghz: float = 1.98
) -> ResultTable:
    """Measure the kernels of separable cross-attention alone, at the ImageNet and AudioSet video settings.

    Times are per sample and cross-attend, of both passes and of each kernel in them. The floor is what the card needs
    at least for the exponentials and the operations of all scores, or for their matrix products, whichever is longer.
    "dense" is torch's fused attention with tokens of 256 channels already built. Errors are relative, of one sample
    against fp64, the largest of all results or gradients; those of "plain" are of plain torch in fp32.

    Args:
        batch: Samples in a step.
        precision: bf16 or fp32.
        repeats: Measurements, of which the median is taken.
        clock_ghz: Clock of the card's multiprocessors, for the floor: 1.98 on an H100 or H200.

    Raises:
        UserError: An option is invalid, or there is no GPU that the kernels support.
    """
    if min(batch, repeats) < 1 or clock_ghz <= 0:
        raise UserError(
            f"--batch {batch}, --repeats {repeats}, --clock_ghz {clock_ghz}: must be at least 1, 1 and above 0"
        )
    if not torch.cuda.is_available() or not separable._has_kernels(torch.zeros(1, device="cuda")):
        raise UserError(
            "benchmark of kernels: found no NVIDIA GPU of compute capability 8.0 or more with Triton, which they need; "
            "run it on a machine with one"
        )
    products = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = [row for name in _SETTINGS for row in _rows(name, batch, products, repeats, clock_ghz)]
    return ResultTable(("setting", "what", "ms", "floor ms", "share", "error", "error of plain"), rows)


def _rows(name: str, batch: int, products: torch.dtype, repeats: int, clock_ghz: float) -> list[list[str]]:
    """Measure one setting."""
    from perceiver_dist.model.grid_attention import attend_by_kernels

    attend: Callable[..., tuple[Tensor, ...]] = partial(attend_by_kernels, products=products)
    case = _case(name, batch, "cuda")
    errors, plain_errors = _errors(case, attend), _errors(case, _PLAIN)
    query, features = case.arguments[0], case.arguments[1]
    scores = query.shape[1] * features.shape[1]
    multiprocessors = torch.cuda.get_device_properties("cuda").multi_processor_count
    cycles_per_second = multiprocessors * clock_ghz * 1e9
    rows = []
    times = _times(attend, case.arguments, case.gradients, repeats)
    for one, seconds in zip(_PASSES, times, strict=True):
        floor = scores * one.cycles(features.shape[2]) / cycles_per_second
        error, of_plain = (f"{max(found[one.errors]):.1e}" for found in (errors, plain_errors))
        milliseconds = 1e3 * seconds / batch
        share = f"{1e3 * floor / milliseconds:.0%}"
        rows.append([name, one.name, f"{milliseconds:.4f}", f"{1e3 * floor:.4f}", share, error, of_plain])
    for kernel, seconds in _times_of_kernels(attend, case):
        rows.append([name, f"kernel {kernel}", f"{1e3 * seconds / batch:.4f}", "-", "-", "-", "-"])
    dense_query, tokens = (
        torch.randn((batch, 1, count, _DENSE_CHANNELS), dtype=products, device="cuda")
        for count in (query.shape[1], features.shape[1])
    )
    dense = partial(F.scaled_dot_product_attention, scale=1 / _DENSE_CHANNELS)
    gradient = torch.randn_like(dense_query)
    seconds_of = _times(
        lambda one, two: (dense(one, two, two),), (dense_query, tokens), (gradient,), repeats, (0,)
    )
    for label, seconds in zip(("dense forward", "dense backward"), seconds_of, strict=True):
        rows.append([name, label, f"{1e3 * seconds / batch:.4f}", "-", "-", "-", "-"])
    return rows


def _case(name: str, batch: int, device: str) -> _Case:
    """Draw arrays of a setting's sizes: scores of a few units, tokens with statistics near those of images."""
    config = SETTINGS[name]
    (spec,) = config.modalities.values()
    grid = spec.grid
    channels = spec.content_channels + 2
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    count = torch.Size(grid).numel()
    mean = 0.1 * random(batch, count)
    content = random(batch, count, channels - 2).clamp(-1, 1)
    features = torch.cat([content, torch.ones_like(mean)[..., None], mean[..., None]], dim=-1)
    query = random(batch, config.latents, channels) / channels**0.5
    axis_scores = [random(batch, config.latents, size) for size in grid]
    arguments = (query, features, mean, 1.5 + 0.1 * random(batch, count), *axis_scores)
    results = (query, query[..., 0], *axis_scores)
    return _Case(arguments, tuple(random(*result.shape) for result in results))


def _run(
    attend: Callable[..., tuple[Tensor, ...]], arguments: tuple[Tensor, ...], learned: tuple[int, ...]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Return the arguments that get gradients, and the results."""
    copies = [array.detach().requires_grad_(index in learned) for index, array in enumerate(arguments)]
    return [copies[index] for index in learned], attend(*copies)


def _learned(arguments: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Return the places of the query and the scores by axis, which get gradients; features and statistics do not."""
    return (0, *range(4, len(arguments)))


def _errors(case: _Case, attend: Callable[..., tuple[Tensor, ...]]) -> list[float]:
    """Return relative errors of the results and gradients of one sample."""
    found: list[list[Tensor]] = []
    for function, dtype in ((_PLAIN, torch.float64), (attend, torch.float32)):
        one = case.to(dtype, samples=1)
        inputs, results = _run(function, one.arguments, _learned(one.arguments))
        # Four results count, however many axes there are: the feature sum, the normaliser and two axes.
        found.append([*results[:4], *torch.autograd.grad(results, inputs, one.gradients)])
    exact, other = found
    return [
        float((two.double() - one).norm().detach() / one.norm().detach())
        for one, two in zip(exact, other, strict=True)
    ]


def _times(
    attend: Callable[..., tuple[Tensor, ...]],
    arguments: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
    repeats: int,
    learned: tuple[int, ...] | None = None,
) -> tuple[float, float]:
    """Return the median seconds of a forward and of a backward pass."""
    forward, backward = [], []
    # The first passes compile and tune the kernels.
    for repetition in range(repeats + 2):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]  # type: ignore[no-untyped-call]
        events[0].record()
        inputs, results = _run(attend, arguments, learned or _learned(arguments))
        events[1].record()
        torch.autograd.grad(results, inputs, gradients)
        events[2].record()
        torch.cuda.synchronize()
        if repetition >= 2:
            forward.append(events[0].elapsed_time(events[1]) / 1e3)
            backward.append(events[1].elapsed_time(events[2]) / 1e3)
    return median(forward), median(backward)


def _times_of_kernels(attend: Callable[..., tuple[Tensor, ...]], case: _Case) -> list[tuple[str, float]]:
    """Return the seconds of each Triton kernel in one forward and backward pass; `pack` and `combine` run in both."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        inputs, results = _run(attend, case.arguments, _learned(case.arguments))
        torch.autograd.grad(results, inputs, case.gradients)
        torch.cuda.synchronize()
    names = ("pack", "attend", "attend_backward", "combine")
    return [
        (event.key, event.self_device_time_total / 1e6)
        for event in profile.key_averages()
        if event.key in names
    ]
