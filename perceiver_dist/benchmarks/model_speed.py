"""Benchmark of the model: step time and peak memory, against other libraries at the same size and precision.

Every measurement runs in its own process, so that peak memory is its own. Contenders take turns, so that a machine
whose speed drifts treats them alike.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from perceiver_dist.benchmarks.model_peers import CONTENDERS, OTHER_WEIGHTS, build, is_possible
from perceiver_dist.benchmarks.model_settings import SETTINGS, SWEEP, find_setting
from perceiver_dist.benchmarks.processes import measure_in_subprocess, run_measurement
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError
from perceiver_dist.model.cost import paper_flops
from perceiver_dist.model.precision import autocast

_CLASSES = 1000
"""Classes of the head, as on ImageNet."""
_MODULE = "perceiver_dist.benchmarks.model_speed"


@dataclass(frozen=True)
class ModelTask:
    """Task of one measuring process.

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


def measure_model(
    setting: str = "imagenet",
    batch: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    repeats: int = 3,
) -> ResultTable:
    """Measure step time and peak memory of the model, against other libraries at the same size and precision.

    TFLOP/s count the FLOPs of the paper's formulation, three forward passes per step, whatever a contender actually
    computes. Divided by the peak of the accelerator they are the model FLOPs utilisation (MFU).

    Args:
        setting: imagenet, imagenet_1cross, audioset_video, modelnet40 or small.
        batch: Samples in a step.
        precision: fp32 or bf16 (autocast).
        device: cpu or cuda.
        repeats: Processes per contender.

    Raises:
        UserError: An option is invalid, or a process failed.
    """
    if setting not in SETTINGS or min(batch, repeats) < 1:
        raise UserError(
            f"--setting {setting}, --batch {batch}, --repeats {repeats}: --setting must be one of "
            f"{', '.join(SETTINGS)}, --batch and --repeats at least 1"
        )
    found = measure_speeds(CONTENDERS, setting, batch, precision, device, repeats)
    first = next(iter(found.values()))
    config = SETTINGS[setting]
    flops = 3 * batch * paper_flops(config, config.modalities)
    rows = []
    for contender, speeds in found.items():
        step, memory = median_of(speeds, "step"), median_of(speeds, "bytes")
        steps = [speed.step for speed in speeds]
        pairs = zip(speeds[0].logits, first[0].logits, strict=True)
        difference = max(abs(one - other) for one, other in pairs)
        rows.append(
            [
                contender,
                f"{speeds[0].parameters:,}",
                *(f"{figure:.3f}" for figure in (median_of(speeds, "forward"), step, min(steps), max(steps))),
                f"{step / median_of(first, 'step'):.2f}",
                f"{batch / step:.3g}",
                f"{flops / step / 1e12:.3g}",
                f"{memory / 2**30:.2f}",
                f"{memory / median_of(first, 'bytes'):.2f}",
                "-" if contender in OTHER_WEIGHTS else f"{difference:.1e}",
            ]
        )
    times = ("forward s", "step s", "min", "max", "ratio", "samples/s", "TFLOP/s")
    return ResultTable(("model", "parameters", *times, "GiB", "ratio", "difference"), rows)


def measure_sweep(
    precision: Literal["fp32", "bf16"] = "fp32", device: Literal["cpu", "cuda"] = "cpu", repeats: int = 1
) -> ResultTable:
    """Measure the ImageNet model over tokens, latents and depth, against `perceiver-io`, at batch size 1.

    Args:
        precision: fp32 or bf16 (autocast).
        device: cpu or cuda.
        repeats: Processes per contender and size.

    Raises:
        UserError: `perceiver-io` is not installed, repeats is below 1, or a process failed.
    """
    ours, peer = "separable", "perceiver-io"
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}, must be at least 1")
    if not is_possible(peer, SETTINGS["imagenet"]):
        raise UserError(f"{peer} is not installed; run `make benchmark-model KIND=sweep`, which installs it")
    rows = []
    for name in SWEEP:
        found = measure_speeds((ours, peer), name, 1, precision, device, repeats)
        (step, memory), (their_step, their_memory) = (
            (median_of(found[contender], "step"), median_of(found[contender], "bytes") / 2**30)
            for contender in (ours, peer)
        )
        rows.append(
            [
                name,
                *(f"{seconds:.3f}" for seconds in (step, their_step)),
                f"{their_step / step:.2f}",
                *(f"{gigabytes:.2f}" for gigabytes in (memory, their_memory)),
                f"{their_memory / memory:.2f}",
            ]
        )
    return ResultTable(("size", "step s", f"{peer} s", "speedup", "GiB", f"{peer} GiB", "memory ratio"), rows)


def measure_speeds(
    contenders: Sequence[str], setting: str, batch: int, precision: str, device: str, repeats: int
) -> dict[str, list[ModelSpeed]]:
    """Measure contenders in turns.

    Args:
        contenders: Some of `CONTENDERS`.
        setting: Name of one of `SETTINGS` or `SWEEP`.
        batch: Samples in a step.
        precision: fp32 or bf16.
        device: cpu or cuda.
        repeats: Processes per contender.

    Returns:
        One result per repetition, by contender; without those that are not installed or do not support the setting.

    Raises:
        UserError: A process failed.
    """
    found: dict[str, list[ModelSpeed]] = {}
    possible = [name for name in contenders if is_possible(name, find_setting(setting))]
    for _ in range(repeats):
        for contender in possible:
            task = ModelTask(contender, setting, batch, precision, device)
            found.setdefault(contender, []).append(measure_in_subprocess(_MODULE, task, ModelSpeed))
    return found


def median_of(speeds: Sequence[ModelSpeed], name: str) -> float:
    """Return the median of one attribute over repetitions.

    Args:
        speeds: Results of the repetitions.
        name: Name of an attribute of `ModelSpeed`.
    """
    return median(getattr(speed, name) for speed in speeds)


def measure(task: ModelTask) -> ModelSpeed:
    """Measure the second forward pass and the second step in this process, after a warm-up of one each.

    Args:
        task: Contender, setting and device.

    Raises:
        ImportError: The contender's library is not installed.
    """
    device = torch.device(task.device)
    config = find_setting(task.setting)
    compute, model = build(task.contender, config, _CLASSES, task.device)
    [(modality, spec)] = config.modalities.items()
    shape = (task.batch, *spec.array_shape)
    generator = torch.Generator().manual_seed(0)
    array = (
        torch.rand(shape, generator=generator) * 2 - 1
        if spec.array_dtype == "float32"
        else torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    )
    arrays = {modality: array.to(device)}

    def forward() -> torch.Tensor:
        with autocast(device, task.precision):
            return compute(arrays)

    def step() -> None:
        model.zero_grad()
        # Any loss that depends on all logits will do.
        torch.autograd.backward(forward().float().logsumexp(1).sum())

    def evaluate() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    logits = evaluate()[0].float().tolist()
    before = _bytes_in_use(device)
    step()
    step_seconds = _seconds(step, device)
    peak = _peak_bytes(device) - before
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSpeed(parameters, _seconds(evaluate, device), step_seconds, peak, logits)


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
