"""Benchmark of the model: step time and peak memory, against other libraries at the same size and precision.

On CPUs every measurement runs in its own process, so that peak memory is its own, and contenders take turns, so that a
machine whose speed drifts treats them alike.
"""

import math
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Literal

import torch

from perceiver_dist.benchmarks.model_peers import (
    CONTENDERS,
    GPU_CONTENDERS,
    OTHER_LIBRARIES,
    OTHER_WEIGHTS,
    computed_flops,
    is_possible,
)
from perceiver_dist.benchmarks.model_settings import SETTINGS, SWEEP, find_setting
from perceiver_dist.benchmarks.model_steps import ModelSpeed, ModelTask, measure_steps, product_rate
from perceiver_dist.benchmarks.processes import measure_in_subprocess
from perceiver_dist.benchmarks.result_table import ResultTable, commit
from perceiver_dist.errors import UserError
from perceiver_dist.model.cost import paper_flops
from perceiver_dist.preflight.gpus import THROUGHPUT_FILE, MeasuredThroughput

_MODULE = "perceiver_dist.benchmarks.model_steps"
_GPU_COLUMNS = (
    *("model", "batch", "samples/s", "step ms", "min", "max", "ratio"),
    *("paper TFLOP/s", "TFLOP/s", "of a product", "GiB"),
)
GPU_PLAN = (
    ("imagenet", "bf16", (4, 32, 128)),
    ("imagenet", "fp32", (16,)),
    ("audioset_video", "bf16", (128,)),
    ("modelnet40", "bf16", (128,)),
    ("imagenet_1cross", "bf16", (32,)),
)
"""Settings, precisions and batches of `measure_gpu`: few enough for a card that is lent for minutes."""


def measure_model(
    setting: str = "imagenet",
    batch: str = "1",
    precision: Literal["fp32", "bf16"] = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    repeats: int = 3,
    seconds: float = 3.0,
) -> ResultTable:
    """Measure step time and peak memory of the model, against other libraries at the same size and precision.

    On CPUs every measurement has its own process, so that peak memory is its own. On CUDA one process measures all, as
    described at `measure_gpu`. "paper TFLOP/s" count the FLOPs of the paper's formulation, three forward passes per
    step, whatever a contender actually computes.

    Args:
        setting: imagenet, imagenet_1cross, audioset_video, modelnet40 or small.
        batch: Samples in a step; on CUDA also several numbers, separated by commas.
        precision: fp32 or bf16 (autocast).
        device: cpu or cuda.
        repeats: Processes per contender; on CPUs only.
        seconds: Time for the steps of a row; on CUDA only.

    Raises:
        UserError: An option is invalid, or a process failed.
    """
    batches = [int(number) for number in batch.split(",") if number.isdecimal()]
    if setting not in SETTINGS or repeats < 1 or len(batches) != batch.count(",") + 1 or min(batches) < 1:
        raise UserError(
            f"--setting {setting}, --batch {batch}, --repeats {repeats}: --setting must be one of "
            f"{', '.join(SETTINGS)}, --batch and --repeats numbers from 1 on"
        )
    if device == "cuda":
        return _table_of_steps(setting, precision, batches, seconds, device, deadline=math.inf)
    if len(batches) > 1:
        raise UserError(f"--batch {batch}: give one number; several are for --device cuda")
    return _table_of_processes(setting, batches[0], precision, repeats)


def measure_gpu(
    seconds: float = 2.0, minutes: float = 6.0, device: Literal["cpu", "cuda"] = "cuda"
) -> Iterator[tuple[str, ResultTable]]:
    """Measure training steps of all settings on a GPU: fp32 and bf16, several batches, against other libraries.

    Everything runs in one process: some warm-up steps, then steps with AdamW, timed by CUDA events. Columns: samples/s
    and step time (median, minimum, maximum); TFLOP/s by the paper's formulation and by the products that are computed
    (those of the libraries are the paper's); the latter as a share of what one large matrix product reached in the
    same run; and the peak of `torch.cuda.max_memory_allocated` with parameters and optimizer.

    Args:
        seconds: Time for the steps of a row.
        minutes: Time after which no row is begun.
        device: cuda; cpu tries the benchmark out with a small model.

    Yields:
        Section of a page and its table, one for each of `GPU_PLAN`.

    Raises:
        UserError: There is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here that torch can use; run this benchmark on a machine with one")
    deadline = time.monotonic() + 60 * minutes
    plan = GPU_PLAN if device == "cuda" else (("small", "bf16", (1, 2)),)
    for setting, precision, batches in plan:
        yield (
            f"gpu_{setting}_{precision}",
            _table_of_steps(setting, precision, batches, seconds, device, deadline),
        )


def _table_of_steps(
    setting: str, precision: str, batches: Sequence[int], seconds: float, device: str, deadline: float
) -> ResultTable:
    config, rate = SETTINGS[setting], product_rate(device, precision)
    paper = paper_flops(config, config.modalities)
    rows, measured = [], []
    for batch in batches:
        first: float | None = None
        for contender in (name for name in GPU_CONTENDERS if is_possible(name, config)):
            if time.monotonic() > deadline:
                rows.append(_without_figures(contender, batch, "no time left"))
                continue
            times = measure_steps(ModelTask(contender, setting, batch, precision, device), seconds)
            if times is None:
                rows.append(_without_figures(contender, batch, "out of memory"))
                continue
            flops = computed_flops(contender, config, device)
            step = median(times.seconds)
            first = first or step
            rows.append(
                [
                    contender,
                    str(batch),
                    f"{batch / step:.4g}",
                    *(f"{1000 * figure:.1f}" for figure in (step, min(times.seconds), max(times.seconds))),
                    f"{step / first:.2f}",
                    *(f"{3 * batch * count / step / 1e12:.3g}" for count in (paper, flops)),
                    f"{3 * batch * flops / step / rate:.1%}",
                    f"{times.bytes / 2**30:.1f}",
                ]
            )
            if contender not in OTHER_LIBRARIES:
                row = MeasuredThroughput(
                    gpu=torch.cuda.get_device_name() if device == "cuda" else device,
                    model=setting,
                    way=contender,
                    precision=precision,
                    micro_batch=batch,
                    samples_per_second=round(batch / step, 1),
                    forward_gflops=round(flops / 1e9, 1),
                    commit=commit(),
                    date=datetime.now(UTC).date().isoformat(),
                )
                measured.append(row.as_yaml())
    notes = [
        f"a large product in {precision}: {rate / 1e12:.3g} TFLOP/s",
        f"rows for {THROUGHPUT_FILE}:",
        *measured,
    ]
    return ResultTable(_GPU_COLUMNS, rows, notes)


def _without_figures(contender: str, batch: int, reason: str) -> list[str]:
    row = [contender, str(batch), reason]
    return [*row, *["-"] * (len(_GPU_COLUMNS) - len(row))]


def _table_of_processes(setting: str, batch: int, precision: str, repeats: int) -> ResultTable:
    found = measure_speeds(CONTENDERS, setting, batch, precision, "cpu", repeats)
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
