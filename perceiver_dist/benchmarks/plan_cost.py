"""What it costs a process to find the samples of any unit: of how many samples, shards and ranks, and at which step.

Nothing is read. The index of a source is made up, as large as asked, and handed over through a file that is mapped into
memory, as Ray hands it to its workers. Every size is measured in a process of its own.
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

from perceiver_dist.benchmarks.processes import answer, in_a_process
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError
from pipelines.shards.shard_index import ShardSummary, SourceIndex
from pipelines.units.plan import TrainingPlan

_UNIT_SIZE, _CHUNK_SIZE = 32, 4
_MAX_STEPS = 10**7
_UNITS = 200
_MODULE = "perceiver_dist.benchmarks.plan_cost"


@dataclass(frozen=True)
class SourceSize:
    """How large a source is.

    Attributes:
        samples: Of all shards.
        shards: Files.
        ranks: Each takes one unit of a step.
    """

    samples: int
    shards: int
    ranks: int


@dataclass(frozen=True)
class PlanCost:
    """What one process found.

    Attributes:
        first: Seconds from the index in a file to the samples of a first unit.
        unit: Seconds for each further unit, of any rank at any step.
        bytes: Memory of the process's own above that before.
        shared: Size of the index, of which the processes of a node share one copy.
    """

    first: float
    unit: float
    bytes: int
    shared: int


def measure_plan(samples: int = 10**9, shards: int = 10**6, ranks: int = 1024) -> ResultTable:
    """Measure what it costs a process to find the samples of any rank's units at any step.

    Args:
        samples: Of the largest source; a thousandth is measured first.
        shards: Of the largest source; a thousandth is measured first.
        ranks: Ranks, each of which takes one unit of a step.

    Raises:
        UserError: An option is not as it must be, or a process failed.
    """
    if min(samples, shards, ranks) < 1 or samples < shards:
        raise UserError(
            f"--samples {samples}, --shards {shards} and --ranks {ranks} must be at least 1, a shard holds one"
        )
    sizes = [
        SourceSize(max(samples // 1000, 1), max(shards // 1000, 1), ranks),
        SourceSize(samples, shards, ranks),
    ]
    rows = []
    for size in sizes:
        cost = in_a_process(_MODULE, size, PlanCost)
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
        ("samples", "shards", "ranks", "first unit ms", "unit ms", "own MiB", "shared MiB"), rows
    )


def measure(size: SourceSize) -> PlanCost:
    """Measure in this process, in a child of it that has made nothing.

    Args:
        size: How large the source is.
    """
    with tempfile.TemporaryDirectory() as scratch:
        child = os.fork()
        if child == 0:
            _write_index(size, Path(scratch))
            os._exit(0)
        os.waitpid(child, 0)
        return _find(size, Path(scratch))


def _write_index(size: SourceSize, folder: Path) -> None:
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(SourceIndex(_summaries(size)), protocol=5, buffer_callback=buffers.append)
    (folder / "index").write_bytes(content)
    for number, buffer in enumerate(buffers):
        (folder / f"buffer-{number:06d}").write_bytes(buffer)


def _summaries(size: SourceSize) -> Iterator[ShardSummary]:
    for shard in range(size.shards):
        held = size.samples * (shard + 1) // size.shards - size.samples * shard // size.shards
        yield ShardSummary(
            f"s3://bucket/some/folder/train-{shard:09d}.tar", f"s3://bucket/runs/index/{shard:024x}.parquet", 2**28,
            1_700_000_000_000_000_000 + shard, f"{shard:064x}", held,
        )  # fmt: skip


def _find(size: SourceSize, folder: Path) -> PlanCost:
    plan = TrainingPlan("source", size.samples, _UNIT_SIZE, _CHUNK_SIZE, seed=0)
    before, began = _own_bytes(), time.perf_counter()
    files = sorted(folder.glob("buffer-*"))
    index = pickle.loads((folder / "index").read_bytes(), buffers=[_mapped(file) for file in files])  # noqa: S301
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(_UNITS):
        step, rank = int(random.integers(_MAX_STEPS)), int(random.integers(size.ranks))
        for sample in plan.unit(step * size.ranks + rank):
            shard, _ = index.locate(sample)
            _ = index.shards[shard].uri
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    shared = sum(file.stat().st_size for file in files)
    return PlanCost(seconds[0], median(seconds[1:]), _own_bytes() - before, shared)


def _mapped(file: Path) -> pa.Buffer:
    return pa.memory_map(str(file)).read_buffer() if file.stat().st_size else pa.py_buffer(b"")


def _own_bytes() -> int:
    """Memory that is not of a file."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


if __name__ == "__main__":
    answer(SourceSize, measure)
