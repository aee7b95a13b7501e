"""Benchmark of start-up: time from the command to the first step, by the lines that the job prints on the way.

The job is started like by a user, several times with the same storage. The first start also renders and indexes shards.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import median

from perceiver_dist.benchmarks import DEFAULT_CONFIG, JOBS
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.errors import UserError

_PHASES = {
    "preparing data": "imports, configuration",
    "starting ": "shards, Ray, tracking",
    "step 1/": "workers, first units, first step",
}
"""Text of a line that the job prints, and the phase that ends with it, in order."""


def measure_start(config: str = DEFAULT_CONFIG, repeats: int = 3) -> ResultTable:
    """Measure the time from the command to the first step of a run.

    Args:
        config: YAML file of a run.
        repeats: Starts after the first one, which also renders and indexes shards.

    Raises:
        UserError: An option is out of range, or the run failed.
    """
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}, must be at least 1")
    with tempfile.TemporaryDirectory() as storage:
        starts = [_phase_seconds(config, storage) for _ in range(1 + repeats)]
    first, later = starts[0], starts[1:]
    rows = [_row(phase, first[text], [start[text] for start in later]) for text, phase in _PHASES.items()]
    totals = [sum(start.values()) for start in starts]
    return ResultTable(
        ("phase", "first start s", "later starts s", "min", "max"),
        [*rows, _row("total", totals[0], totals[1:])],
    )


def _row(name: str, first: float, later: Sequence[float]) -> list[str]:
    return [name, *(f"{seconds:.1f}" for seconds in (first, median(later), min(later), max(later)))]


def _phase_seconds(config: str, storage: str) -> dict[str, float]:
    options = ("--train.steps=1", "--train.eval_every=0", "--train.log_every=1", f"--storage.path={storage}")
    command = [sys.executable, "-u", str(JOBS / "train_multimodal.py"), "--config", config, *options]
    expected = list(_PHASES)
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603
    last = ""
    for line in job.stdout or ():
        last = line.strip() or last
        if expected and expected[0] in line:
            now = time.perf_counter()
            seconds[expected.pop(0)] = now - started
            started = now
    if job.wait() or expected:
        raise UserError(f"measuring the start of {config}: the run failed, its last line is: {last}")
    return seconds
