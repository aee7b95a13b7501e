"""Steps of one model under measurement: in a process of its own for CPUs, several in one process for a GPU.

On CPUs a step is forward and backward, and memory is the process's. On a GPU, where time is lent by the minute, one
process measures all: steps with the optimizer, timed by CUDA events, until the time for a row is spent; memory is what
torch's allocator has handed out at most.
"""

import gc
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from perceiver_dist.benchmarks.model_peers import build
from perceiver_dist.benchmarks.model_settings import find_setting
from perceiver_dist.benchmarks.processes import run_measurement
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.model.precision import autocast

CLASSES = 1000
"""Classes of the head, as on ImageNet."""
_WARM_UP = 3
"""Steps before the first that counts: the first compiles and tunes kernels, the second fills the allocator's cache."""
_FEWEST, _MOST = 3, 200
"""Steps that count. With fewer than 3 a median says little; 200 of the shortest steps take a second."""
_PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}
"""Side of the matrices whose product gives the rate of a device: large enough for an H200 to reach its limit."""


@dataclass(frozen=True)
class ModelTask:
    """Task of a measurement.

    Attributes:
        contender: One of `CONTENDERS`.
        setting: Name of one of `SETTINGS` or `SWEEP`.
        batch: Samples in a step.
        precision: fp32, or bf16 by autocast.
        device: cpu or cuda.
    """

    contender: str
    setting: str
    batch: int
    precision: str
    device: str


@dataclass(frozen=True)
class ModelSpeed:
    """Result of one measuring process.

    Attributes:
        parameters: Number of parameters.
        forward: Seconds of a forward pass without gradients.
        step: Seconds of a forward and backward pass.
        bytes: Peak memory of the steps, above that of the process with model and input.
        logits: Logits of the first sample.
    """

    parameters: int
    forward: float
    step: float
    bytes: int
    logits: list[float]


@dataclass(frozen=True)
class StepTimes:
    """Result of `measure_steps`.

    Attributes:
        seconds: Seconds of each step.
        bytes: Peak of the memory in use, with parameters, optimizer state and input; 0 on CPUs.
    """

    seconds: list[float]
    bytes: int


def measure(task: ModelTask) -> ModelSpeed:
    """Measure the second forward pass and the second step in this process, after a warm-up of one each.

    Args:
        task: Contender, setting and device.

    Raises:
        ImportError: The contender's library is not installed.
    """
    device = torch.device(task.device)
    config = find_setting(task.setting)
    compute, model = build(task.contender, config, CLASSES, task.device)
    arrays = _random_arrays(config, task.batch, device)

    def forward() -> Tensor:
        with autocast(device, task.precision):
            return compute(arrays)

    def step() -> None:
        model.zero_grad()
        # Any loss that depends on all logits will do.
        torch.autograd.backward(forward().float().logsumexp(1).sum())

    def evaluate() -> Tensor:
        with torch.no_grad():
            return forward()

    logits = evaluate()[0].float().tolist()
    before = _bytes_in_use(device)
    step()
    step_seconds = _seconds(step, device)
    peak = _peak_bytes(device) - before
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSpeed(parameters, _seconds(evaluate, device), step_seconds, peak, logits)


def measure_steps(task: ModelTask, seconds: float) -> StepTimes | None:
    """Measure training steps, with AdamW, in this process.

    Args:
        task: Contender, setting and device.
        seconds: Time for the steps that count; at least `_FEWEST` are taken. Building and warming up come on top.

    Returns:
        The times, or None if memory does not suffice.

    Raises:
        ImportError: The contender's library is not installed.
    """
    try:
        return _measure_steps(task, seconds)
    except torch.OutOfMemoryError:
        return None
    finally:
        # What the failed or finished step has left.
        gc.collect()
        torch._dynamo.reset()
        if task.device == "cuda":
            torch.cuda.empty_cache()


def _measure_steps(task: ModelTask, seconds: float) -> StepTimes:
    device, config = torch.device(task.device), find_setting(task.setting)
    compute, model = build(task.contender, config, CLASSES, task.device)
    arrays = _random_arrays(config, task.batch, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with autocast(device, task.precision):
            logits = compute(arrays)
        torch.autograd.backward(logits.float().logsumexp(1).mean())
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(_WARM_UP):
        last = _seconds(step, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    count = min(max(round(seconds / last), _FEWEST), _MOST)
    times = _step_seconds(step, device, count)
    return StepTimes(times, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)


def product_rate(device: str, precision: str) -> float:
    """Return the FLOP/s of one large matrix product on a device: what a model's products can reach at most.

    Args:
        device: cpu or cuda.
        precision: fp32 (without TF32) or bf16.
    """
    size, dtype = _PRODUCT_SIZE[device], torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(left, right)

    for _ in range(_WARM_UP):
        multiply()
    return 2 * size**3 / median(_step_seconds(multiply, torch.device(device), 10))


def _random_arrays(config: ModelConfig, batch: int, device: torch.device) -> Mapping[str, Tensor]:
    """Return random arrays (batch, *array_shape) of a setting's only modality."""
    [(modality, spec)] = config.modalities.items()
    shape = (batch, *spec.array_shape)
    generator = torch.Generator().manual_seed(0)
    array = (
        torch.rand(shape, generator=generator) * 2 - 1
        if spec.array_dtype == "float32"
        else torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    )
    return {modality: array.to(device)}


def _step_seconds(step: Callable[[], object], device: torch.device, count: int) -> list[float]:
    """Return the seconds of each of `count` steps; on CUDA nothing waits for the device in between."""
    if device.type != "cuda":
        return [_seconds(step, device) for _ in range(count)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call] # torch's
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) / 1000 for first, second in pairwise(events)]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    started = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _bytes_in_use(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * resource.getpagesize()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Linux gives kibibytes.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    run_measurement(ModelTask, measure)
