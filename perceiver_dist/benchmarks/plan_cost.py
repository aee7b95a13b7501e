"""Benchmark of the plan: time and memory to find the samples of any unit, at any step of a source of any size.

No shard is read. A synthetic index of the given size is passed through a memory-mapped file, as Ray passes it to its
workers. Every size is measured in its own process.
"""

import os
import pickle
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pyarrow as pa

from perceiver_dist.benchmarks.processes import measure_in_subprocess, run_measurement
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError
from pipelines.shards.shard_index import ShardSummary, SourceIndex
from pipelines.units.plan import TrainingPlan

_UNIT_SIZE, _CHUNK_SIZE = 32, 4
"""The defaults of train.micro_batch and data.chunk_size."""
_MAX_STEPS = 10**7
"""Units are drawn from steps below this: more steps than any run takes, to show that a late unit costs no more."""
_UNITS = 200
"""Measured units, enough for a stable median of about a millisecond."""
_MODULE = "perceiver_dist.benchmarks.plan_cost"


@dataclass(frozen=True)
class SourceSize:
    """Size of a source.

    Attributes:
        samples: Samples in all shards.
        shards: Number of shards.
        ranks: Number of ranks, each of which takes one unit per step.
    """

    samples: int
    shards: int
    ranks: int


@dataclass(frozen=True)
class PlanCost:
    """Result of one measuring process.

    Attributes:
        first: Seconds from the index file to the samples of the first unit.
        unit: Median seconds for each further unit, of any rank at any step.
        bytes: Increase of the process's private memory.
        shared: Size of the index, one copy of which is shared by all processes of a node.
    """

    first: float
    unit: float
    bytes: int
    shared: int


def measure_plan(samples: int = 10**9, shards: int = 10**6, ranks: int = 1024) -> ResultTable:
    """Measure time and memory to find the samples of any rank's units at any step.

    Args:
        samples: Samples of the larger source; one of a thousandth of it is measured as well.
        shards: Shards of the larger source; one of a thousandth of it is measured as well.
        ranks: Number of ranks, each of which takes one unit per step.

    Raises:
        UserError: An option is out of range, or a process failed.
    """
    if min(samples, shards, ranks) < 1 or samples < shards:
        raise UserError(
            f"--samples {samples}, --shards {shards} and --ranks {ranks} must be at least 1, and --samples at least "
            "--shards"
        )
    sizes = [
        SourceSize(max(samples // 1000, 1), max(shards // 1000, 1), ranks),
        SourceSize(samples, shards, ranks),
    ]
    rows = []
    for size in sizes:
        cost = measure_in_subprocess(_MODULE, size, PlanCost)
        rows.append(
            [
                f"{size.samples:,}",
                f"{size.shards:,}",
                f"{size.ranks:,}",
                f"{1000 * cost.first:.1f}",
                f"{1000 * cost.unit:.2f}",
                f"{cost.bytes / 2**20:.0f}",
                f"{cost.shared / 2**20:.0f}",
            ]
        )
    return ResultTable(
        ("samples", "shards", "ranks", "first unit ms", "unit ms", "private MiB", "shared MiB"), rows
    )


def measure(size: SourceSize) -> PlanCost:
    """Measure in this process, after a child process has written the index.

    Args:
        size: Size of the source.
    """
    # Building the index takes memory that this process would keep, so a child does it.
    with tempfile.TemporaryDirectory() as scratch:
        child = os.fork()
        if child == 0:
            _write_index(size, Path(scratch))
            os._exit(0)
        os.waitpid(child, 0)
        return _find_units(size, Path(scratch))


def _write_index(size: SourceSize, folder: Path) -> None:
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(SourceIndex(_summaries(size)), protocol=5, buffer_callback=buffers.append)
    (folder / "index").write_bytes(content)
    for number, buffer in enumerate(buffers):
        (folder / f"buffer-{number:06d}").write_bytes(buffer)


def _summaries(size: SourceSize) -> Iterator[ShardSummary]:
    for shard in range(size.shards):
        samples = size.samples * (shard + 1) // size.shards - size.samples * shard // size.shards
        yield ShardSummary(
            f"s3://bucket/some/folder/train-{shard:09d}.tar", f"s3://bucket/runs/index/{shard:024x}.parquet", 2**28,
            1_700_000_000_000_000_000 + shard, f"{shard:064x}", samples,
        )  # fmt: skip


def _find_units(size: SourceSize, folder: Path) -> PlanCost:
    plan = TrainingPlan("source", size.samples, _UNIT_SIZE, _CHUNK_SIZE, seed=0)
    before, started = _private_bytes(), time.perf_counter()
    files = sorted(folder.glob("buffer-*"))
    index = pickle.loads((folder / "index").read_bytes(), buffers=[_mapped(file) for file in files])  # noqa: S301
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(_UNITS):
        step, rank = int(random.integers(_MAX_STEPS)), int(random.integers(size.ranks))
        for sample in plan.unit(step * size.ranks + rank):
            shard, _ = index.locate(sample)
            _ = index.shards[shard].uri
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    shared = sum(file.stat().st_size for file in files)
    return PlanCost(seconds[0], median(seconds[1:]), _private_bytes() - before, shared)


def _mapped(file: Path) -> pa.Buffer:
    return pa.memory_map(str(file)).read_buffer() if file.stat().st_size else pa.py_buffer(b"")


def _private_bytes() -> int:
    """Return the resident memory that is not shared, such as mapped files are."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


if __name__ == "__main__":
    run_measurement(SourceSize, measure)
