"""How fast samples are read, and at what cost, side by side with webdataset and stock Ray Data at equal CPUs.

Every measurement is made in a process of its own. Contenders take turns, so that a machine whose speed drifts is fair
to each. Time is that of whole batches as tensors, after a first while in which workers start and buffers fill; the cost
is the processor time of all processes in that time, Ray's own among them.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from perceiver_dist.benchmarks.data_pipelines import PIPELINES
from perceiver_dist.benchmarks.data_sets import DATA_SETS, make_data_set
from perceiver_dist.benchmarks.processes import answer, in_a_process
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError

_MODULE = "perceiver_dist.benchmarks.data_speed"
_MAX_BATCHES = 20_000
"""No way reads so many in a minute on a few cores."""


@dataclass(frozen=True)
class ReadingTask:
    """What one process measures.

    Attributes:
        pipeline: One of `PIPELINES`.
        data_set: One of `DATA_SETS`.
        cpus: Worker processes or tasks at a time.
        seconds: For how long.
        folder: Where shards are kept.
    """

    pipeline: str
    data_set: str
    cpus: int
    seconds: float
    folder: str


@dataclass(frozen=True)
class ReadingSpeed:
    """What one process found.

    Attributes:
        samples_per_second: Of whole batches.
        cpu_seconds: Processor time of a sample.
    """

    samples_per_second: float
    cpu_seconds: float


def measure_data(
    sets: list[str] | None = None,
    cpus: int = 0,
    seconds: float = 20.0,
    repeats: int = 3,
    folder: str = "runs/benchmark",
) -> ResultTable:
    """Measure reading and decoding beside webdataset and stock Ray Data.

    Args:
        sets: Some of photographs, clips, recordings and tiny; by default all.
        cpus: Worker processes of each; 0 for all cores.
        seconds: For how long each is measured, after a half of this in which it gets going.
        repeats: Processes for each.
        folder: Where shards are kept; made the first time.

    Raises:
        UserError: An option is not as it must be, or a process failed.
    """
    sets = sets or list(DATA_SETS)
    unknown = [name for name in sets if name not in DATA_SETS]
    if unknown or seconds <= 0 or repeats < 1 or cpus < 0:
        raise UserError(
            f"--sets must be some of {', '.join(DATA_SETS)}, --seconds above 0, --repeats at least 1, --cpus not "
            "negative"
        )
    found: dict[tuple[str, str], list[ReadingSpeed]] = {}
    for name in sets:
        pictures = list(make_data_set(name, Path(folder)).inputs) == ["image"]
        for _ in range(repeats):
            for pipeline in PIPELINES:
                if pictures or "own decoder" not in pipeline:
                    task = ReadingTask(pipeline, name, cpus or os.cpu_count() or 1, seconds, folder)
                    found.setdefault((name, pipeline), []).append(
                        in_a_process(_MODULE, task, ReadingSpeed, {"OMP_NUM_THREADS": "1"})
                    )
    return ResultTable(
        ("samples", "read by", "samples/s", "least", "most", "ratio", "CPU ms", "ratio"),
        [
            _row(name, pipeline, speeds, found[name, "perceiver-dist"])
            for (name, pipeline), speeds in found.items()
        ],
    )


def _row(
    name: str, pipeline: str, speeds: Sequence[ReadingSpeed], first: Sequence[ReadingSpeed]
) -> list[str]:
    rates = [speed.samples_per_second for speed in speeds]
    cost = median(speed.cpu_seconds for speed in speeds)
    our_rate = median(speed.samples_per_second for speed in first)
    our_cost = median(speed.cpu_seconds for speed in first)
    return [
        name,
        pipeline,
        *(f"{rate:,.0f}" for rate in (median(rates), min(rates), max(rates))),
        f"{our_rate / median(rates):.2f}",
        f"{1000 * cost:.2f}",
        f"{cost / our_cost:.2f}",
    ]


def measure(task: ReadingTask) -> ReadingSpeed:
    """Measure in this process.

    Args:
        task: What to measure.
    """
    data_set = make_data_set(task.data_set, Path(task.folder))
    batches = PIPELINES[task.pipeline](data_set, task.cpus, _MAX_BATCHES, f"{task.folder}/index")
    next(batches)
    _count(batches, task.seconds / 2)
    cost, began = _cpu_seconds(), time.perf_counter()
    samples = _count(batches, task.seconds)
    seconds, cost = time.perf_counter() - began, _cpu_seconds() - cost
    return ReadingSpeed(samples / seconds, cost / samples)


def _count(batches: Iterator[int], seconds: float) -> int:
    end = time.perf_counter() + seconds
    samples = 0
    while time.perf_counter() < end:
        samples += next(batches)
    return samples


def _cpu_seconds() -> float:
    """Processor time of this process and of all that it started and that still run."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


if __name__ == "__main__":
    answer(ReadingTask, measure)
