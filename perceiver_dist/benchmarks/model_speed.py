"""How fast the model is and what memory it takes, side by side with other libraries' at the same size and precision.

Every measurement is made in a process of its own, so that none has the other's memory, and contenders take turns, so
that a machine whose speed drifts is fair to each.
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
from perceiver_dist.benchmarks.processes import answer, in_a_process
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError
from perceiver_dist.model.cost import paper_flops
from perceiver_dist.model.precision import autocast

_CLASSES = 1000
_MODULE = "perceiver_dist.benchmarks.model_speed"


@dataclass(frozen=True)
class ModelTask:
    """What one process measures.

    Attributes:
        contender: One of `CONTENDERS`.
        setting: Name of one of `SETTINGS` or `SWEEP`.
        batch: Samples.
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
    """What one process found.

    Attributes:
        parameters: Of the model.
        forward: Seconds of a forward pass without gradients.
        step: Seconds of a forward and backward pass.
        bytes: Largest memory above that of the process with model and input, before its first step.
        logits: Of the first sample.
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
    """Measure the model's step beside that of other libraries, at the same size and precision.

    TFLOP/s are by the paper's count, three forward passes to a step, whatever is computed in truth; a share of what
    the accelerator can do (MFU) is found by dividing.

    Args:
        setting: imagenet, imagenet_1cross, audioset_video, modelnet40 or small.
        batch: Samples in a step.
        precision: fp32 or bf16 (autocast).
        device: cpu or cuda.
        repeats: Processes for each contender.

    Raises:
        UserError: An option is not as it must be, or a process failed.
    """
    if setting not in SETTINGS or min(batch, repeats) < 1:
        raise UserError(f"--setting must be one of {', '.join(SETTINGS)}, --batch and --repeats at least 1")
    found = measure_speeds(CONTENDERS, setting, batch, precision, device, repeats)
    first = next(iter(found.values()))
    config = SETTINGS[setting]
    flops = 3 * batch * paper_flops(config, config.modalities)
    rows = []
    for contender, speeds in found.items():
        step, memory = middle(speeds, "step"), middle(speeds, "bytes")
        steps = [speed.step for speed in speeds]
        pairs = zip(speeds[0].logits, first[0].logits, strict=True)
        difference = max(abs(one - other) for one, other in pairs)
        rows.append(
            [
                contender,
                f"{speeds[0].parameters:,}",
                *(f"{figure:.3f}" for figure in (middle(speeds, "forward"), step, min(steps), max(steps))),
                f"{step / middle(first, 'step'):.2f}",
                f"{batch / step:.3g}",
                f"{flops / step / 1e12:.3g}",
                f"{memory / 2**30:.2f}",
                f"{memory / middle(first, 'bytes'):.2f}",
                "-" if contender in OTHER_WEIGHTS else f"{difference:.1e}",
            ]
        )
    times = ("forward s", "step s", "least", "most", "ratio", "samples/s", "TFLOP/s")
    return ResultTable(("model", "parameters", *times, "GiB", "ratio", "difference"), rows)


def measure_sweep(
    precision: Literal["fp32", "bf16"] = "fp32", device: Literal["cpu", "cuda"] = "cpu", repeats: int = 1
) -> ResultTable:
    """Measure the ImageNet model's step beside `perceiver-io`'s over tokens, latents and depth, one sample at a time.

    Args:
        precision: fp32 or bf16 (autocast).
        device: cpu or cuda.
        repeats: Processes for each contender and size.

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
            (middle(found[contender], "step"), middle(found[contender], "bytes") / 2**30)
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
    return ResultTable(
        ("size", "step s", f"{peer} s", "times as fast", "GiB", f"{peer} GiB", "times as small"), rows
    )


def measure_speeds(
    contenders: Sequence[str], setting: str, batch: int, precision: str, device: str, repeats: int
) -> dict[str, list[ModelSpeed]]:
    """Measure contenders by turns.

    Args:
        contenders: Some of `CONTENDERS`.
        setting: Name of one of `SETTINGS` or `SWEEP`.
        batch: Samples.
        precision: fp32 or bf16.
        device: cpu or cuda.
        repeats: Processes for each contender.

    Returns:
        A result for each repetition by contender; those that cannot be had here or at this setting are left out.

    Raises:
        UserError: A process failed.
    """
    found: dict[str, list[ModelSpeed]] = {}
    possible = [name for name in contenders if is_possible(name, find_setting(setting))]
    for _ in range(repeats):
        for contender in possible:
            task = ModelTask(contender, setting, batch, precision, device)
            found.setdefault(contender, []).append(in_a_process(_MODULE, task, ModelSpeed))
    return found


def middle(speeds: Sequence[ModelSpeed], name: str) -> float:
    """Return the median of one figure.

    Args:
        speeds: Repetitions.
        name: The figure's name in `ModelSpeed`.
    """
    return median(getattr(speed, name) for speed in speeds)


def measure(task: ModelTask) -> ModelSpeed:
    """Measure in this process: the second forward pass and the second step, after a first that does not count.

    Args:
        task: What to measure.

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
        torch.autograd.backward(forward().float().logsumexp(1).sum())

    def evaluate() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    logits = evaluate()[0].float().tolist()
    before = _bytes_in_use(device)
    step()
    step_seconds = _seconds(step, device)
    peak = _most_bytes(device) - before
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSpeed(parameters, _seconds(evaluate, device), step_seconds, peak, logits)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _bytes_in_use(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * resource.getpagesize()


def _most_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    answer(ModelTask, measure)
