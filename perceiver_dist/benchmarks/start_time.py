"""Benchmark of start-up: time from the command to the first step, by the job's own lines and by process.

The job is started like by a user, several times with the same storage. The first start also renders and indexes shards;
the last one finds no `.pyc` files, as a job that is the first of its installation. Trials of a search start one after
the other in its Ray, each from the opening of its MLflow run, which comes first, to its first record there.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from mlflow.tracking import MlflowClient

from perceiver_dist.benchmarks import DEFAULT_CONFIG, JOBS, SEARCH_CONFIG
from perceiver_dist.benchmarks.import_probe.sitecustomize import FOLDER
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.benchmarks.start_processes import PROBE, ProcessTimes, ProcessWatch, rows_of
from perceiver_dist.errors import UserError
from perceiver_dist.search.study.search_record import load_record

_PHASES = {
    "preparing data": "imports, configuration",
    "starting ": "shards, Ray, tracking",
    "step 1/": "workers, first units, first step",
}
"""Text of a line that the job prints, and the phase that ends with it, in order."""

_SECONDS_BETWEEN_LOOKS = 0.25
"""Time between two looks at the processes: short beside an import, and 2% of a core."""


class _Start:
    """One start of the job: the times at which its phases ended, and of its processes."""

    def __init__(self, name: str, config: str, storage: str, environment: dict[str, str]) -> None:
        self.name = name
        self.ends: dict[str, float] = {}
        self._first_step = threading.Event()
        options = (
            "--train.steps=1",
            "--train.eval_every=0",
            "--train.log_every=1",
            f"--storage.path={storage}",
        )
        command = [sys.executable, "-u", str(JOBS / "train_multimodal.py"), "--config", config, *options]
        with tempfile.TemporaryDirectory() as probed:
            path = os.pathsep.join(filter(None, (str(PROBE), os.environ.get("PYTHONPATH"))))
            variables = {**os.environ, **environment, FOLDER: probed, "PYTHONPATH": path}
            self._began = time.perf_counter()
            job = subprocess.Popen(  # noqa: S603
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
            )
            watch = ProcessWatch(job.pid, Path(probed))
            reader = threading.Thread(target=self._read, args=(job,))
            reader.start()
            while not self._first_step.wait(_SECONDS_BETWEEN_LOOKS):
                watch.look()
            watch.look()
            self.processes: list[ProcessTimes] = watch.times(self.seconds)
            reader.join()
        if job.wait() or len(self.ends) < len(_PHASES):
            raise UserError(
                f"measuring the start of {config}: the run failed, its last line is: {self._last}"
            )

    @property
    def seconds(self) -> float:
        """Seconds from the command to the newest phase's end."""
        return max(self.ends.values(), default=0.0)

    def _read(self, job: "subprocess.Popen[str]") -> None:
        expected = list(_PHASES)
        self._last = ""
        for line in job.stdout or ():
            self._last = line.strip() or self._last
            if expected and expected[0] in line:
                self.ends[expected.pop(0)] = time.perf_counter() - self._began
            if not expected:
                self._first_step.set()
        self._first_step.set()

    def rows(self, other_starts: str = "") -> list[list[str]]:
        """Return the table's rows: the whole start, its phases, and its processes.

        Args:
            other_starts: Added to the name of the whole start.
        """
        cpu = sum(of.cpu for of in self.processes)
        rows = [
            [
                self.name,
                f"command to first step{other_starts}",
                "",
                "0.0",
                _text(self.seconds),
                *[""] * 4,
                _text(cpu),
            ]
        ]
        before = 0.0
        for text, phase in _PHASES.items():
            ends = self.ends[text]
            rows.append([self.name, f"phase: {phase}", "", _text(before), _text(ends - before), *[""] * 5])
            before = ends
        return rows + [[self.name, *row] for row in rows_of(self.processes)]


_SEARCH = "start"


def _trial_row(config: str, search: str, trials: int, storage: str) -> list[str]:
    """Run a search, and return the table's row on the starts of its trials but the first one.

    Raises:
        UserError: The search failed.
    """
    options = (
        f"--search.name={_SEARCH}",
        f"--search.trials={trials + 1}",
        "--search.max_concurrent=1",
        "--search.scheduler=none",
        "--search.evaluations=1",
        "--train.steps=1",
        "--train.log_every=1",
        f"--storage.path={storage}",
    )
    command = [
        sys.executable,
        str(JOBS / "tune_perceiver.py"),
        "--config",
        config,
        "--config",
        search,
        *options,
    ]
    job = subprocess.run(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    record = load_record(f"{storage}/{_SEARCH}/search.json")
    if job.returncode or record is None:
        last = (job.stdout.strip().splitlines() or [""])[-1]
        raise UserError(
            f"measuring the start of trials of {search}: the search failed, its last line is: {last}"
        )
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    seconds = sorted(
        (
            client.get_metric_history(trial.mlflow_run_id, "train/loss")[0].timestamp
            - client.get_run(trial.mlflow_run_id).info.start_time
        )
        / 1000
        for trial in record.trials[1:]
    )
    what = f"its MLflow run to its first step, {_text(seconds[0])} to {_text(seconds[-1])}"
    return ["trial of a search", what, str(trials), "", _text(median(seconds)), *[""] * 5]


def _text(seconds: float) -> str:
    return f"{seconds:.1f}"


def measure_start(config: str = DEFAULT_CONFIG, search: str = SEARCH_CONFIG, repeats: int = 3) -> ResultTable:
    """Measure the time from the command to the first step of a run, and where it goes.

    Of the later starts, the one with the median time is broken down.

    Args:
        config: YAML file of a run.
        search: YAML file of a search, whose trials train it for one step each.
        repeats: Starts after the first one, which also renders and indexes shards; and trials after the first one.

    Raises:
        UserError: An option is out of range, or the run failed.
    """
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}, must be at least 1")
    with tempfile.TemporaryDirectory() as storage, tempfile.TemporaryDirectory() as no_pyc:
        first = _Start("first", config, storage, {})
        later = sorted((_Start("later", config, storage, {}) for _ in range(repeats)), key=_seconds_of)
        compiling = _Start("without .pyc", config, storage, {"PYTHONPYCACHEPREFIX": no_pyc})
        trial = _trial_row(config, search, repeats, storage)
    spread = f", {_text(later[0].seconds)} to {_text(later[-1].seconds)}"
    return ResultTable(
        (
            "start",
            "what",
            "number",
            "begins s",
            "seconds",
            "spawn s",
            "imports s",
            "work s",
            "waiting s",
            "CPU s",
        ),
        [*first.rows(), *later[len(later) // 2].rows(spread), *compiling.rows(), trial],
    )


def _seconds_of(start: _Start) -> float:
    return start.seconds
