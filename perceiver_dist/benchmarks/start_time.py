"""How long a run takes from the command to its first step, by what it tells on the way.

The job is started as a person would, several times in the same storage: the first time shards are rendered and indexed.
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
    "preparing data": "imports, and the configuration",
    "starting ": "shards, Ray, and the record",
    "step 1/": "workers, the first units, and the step",
}
"""Words of a line, and what was done until it came."""


def measure_start(config: str = DEFAULT_CONFIG, repeats: int = 3) -> ResultTable:
    """Measure how long a run takes from the command to its first step.

    Args:
        config: YAML file of a run.
        repeats: Starts after the first one, which renders and indexes.

    Raises:
        UserError: An option is not as it must be, or the run failed.
    """
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}, must be at least 1")
    with tempfile.TemporaryDirectory() as storage:
        starts = [_seconds_of_a_start(config, storage) for _ in range(1 + repeats)]
    first, later = starts[0], starts[1:]
    rows = [
        _row(meaning, first[phase], [start[phase] for start in later]) for phase, meaning in _PHASES.items()
    ]
    totals = [sum(start.values()) for start in starts]
    return ResultTable(
        ("until", "first time s", "later s", "least", "most"), [*rows, _row("all", totals[0], totals[1:])]
    )


def _row(name: str, first: float, later: Sequence[float]) -> list[str]:
    return [name, *(f"{seconds:.1f}" for seconds in (first, median(later), min(later), max(later)))]


def _seconds_of_a_start(config: str, storage: str) -> dict[str, float]:
    options = ("--train.steps=1", "--train.eval_every=0", "--train.log_every=1", f"--storage.path={storage}")
    command = [sys.executable, "-u", str(JOBS / "train_multimodal.py"), "--config", config, *options]
    waiting = list(_PHASES)
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603
    last = ""
    for line in job.stdout or ():
        last = line.strip() or last
        if waiting and waiting[0] in line:
            now = time.perf_counter()
            seconds[waiting.pop(0)] = now - began
            began = now
    if job.wait() or waiting:
        raise UserError(f"measuring the start of {config}: {last}")
    return seconds
