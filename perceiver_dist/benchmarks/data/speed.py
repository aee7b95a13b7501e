"""Benchmark of reading and decoding: throughput and CPU time, against other libraries at equal CPUs.

Every measurement runs in its own process. Pipelines take turns, so that a machine whose speed drifts treats them alike.
Throughput is that of whole batches as tensors, after a warm-up in which workers start and buffers fill. CPU time is the
sum over all processes in the same period, including Ray's own.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from perceiver_dist.benchmarks.data.data_sets import DATA_SETS, make_data_set
from perceiver_dist.benchmarks.data.peers import PEERS, missing_library
from perceiver_dist.benchmarks.data.pipelines import PIPELINES
from perceiver_dist.benchmarks.processes import measure_in_subprocess, run_measurement
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError

_MODULE = "perceiver_dist.benchmarks.data.speed"
_PIPELINES = {**PIPELINES, **PEERS}
_MAX_BATCHES = 20_000
"""Batches that a pipeline is prepared for; more than any of them reads in a minute on a few cores."""


@dataclass(frozen=True)
class ReadingTask:
    """Task of one measuring process.

    Attributes:
        pipeline: One of `PIPELINES` or `PEERS`.
        data_set: One of `DATA_SETS`.
        cpus: Concurrent worker processes or read tasks.
        seconds: Measured time, after a warm-up of half of it.
        folder: Folder of the shards, and of copies in other formats.
    """

    pipeline: str
    data_set: str
    cpus: int
    seconds: float
    folder: str


@dataclass(frozen=True)
class ReadingSpeed:
    """Result of one measuring process.

    Attributes:
        samples_per_second: Throughput in whole batches.
        cpu_seconds: CPU time per sample.
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
    """Measure the throughput of reading and decoding, against webdataset, Ray Data, mosaicml-streaming and litdata.

    `make benchmark-data` installs the last two; they are left out where they are missing.

    Args:
        sets: Some of photographs, clips, recordings and tiny; by default all.
        cpus: Worker processes of each pipeline; 0 for all cores.
        seconds: Measured time per process, after a warm-up of half of it.
        repeats: Processes per pipeline and data set.
        folder: Folder of the shards and of their copies in other formats, which are written the first time.

    Raises:
        UserError: An option is invalid, or a process failed.
    """
    sets = sets or list(DATA_SETS)
    unknown = [name for name in sets if name not in DATA_SETS]
    if unknown or seconds <= 0 or repeats < 1 or cpus < 0:
        raise UserError(
            f"--sets {sets}, --seconds {seconds}, --repeats {repeats}, --cpus {cpus}: --sets must be some of "
            f"{', '.join(DATA_SETS)}, --seconds above 0, --repeats at least 1, --cpus at least 0"
        )
    missing = {pipeline: library for pipeline in _PIPELINES if (library := missing_library(pipeline))}
    found: dict[tuple[str, str], list[ReadingSpeed]] = {}
    for name in sets:
        pictures = list(make_data_set(name, Path(folder)).inputs) == ["image"]
        for _ in range(repeats):
            for pipeline in _PIPELINES:
                if pipeline not in missing and (pictures or "own decoder" not in pipeline):
                    task = ReadingTask(pipeline, name, cpus or os.cpu_count() or 1, seconds, folder)
                    # One thread per process, so that no pipeline uses more CPUs than it was given.
                    found.setdefault((name, pipeline), []).append(
                        measure_in_subprocess(_MODULE, task, ReadingSpeed, {"OMP_NUM_THREADS": "1"})
                    )
    return ResultTable(
        ("samples", "pipeline", "samples/s", "min", "max", "ratio", "CPU ms", "ratio"),
        [
            _row(name, pipeline, speeds, found[name, "perceiver-dist"])
            for (name, pipeline), speeds in found.items()
        ],
        [
            f"{name} is not installed: `make benchmark-data` installs it"
            for name in dict.fromkeys(missing.values())
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
    """Measure a pipeline in this process.

    Args:
        task: Pipeline, data set and time.
    """
    data_set = make_data_set(task.data_set, Path(task.folder))
    batches = _PIPELINES[task.pipeline](data_set, task.cpus, _MAX_BATCHES, f"{task.folder}/index")
    next(batches)
    _count(batches, task.seconds / 2)
    cost, started = _cpu_seconds(), time.perf_counter()
    samples = _count(batches, task.seconds)
    seconds, cost = time.perf_counter() - started, _cpu_seconds() - cost
    return ReadingSpeed(samples / seconds, cost / samples)


def _count(batches: Iterator[int], seconds: float) -> int:
    end = time.perf_counter() + seconds
    samples = 0
    while time.perf_counter() < end:
        samples += next(batches)
    return samples


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its descendants that still run."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


if __name__ == "__main__":
    run_measurement(ReadingTask, measure)
