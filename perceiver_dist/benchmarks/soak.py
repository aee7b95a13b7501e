"""Soak of a run: whether memory, file descriptors, threads and shared memory of its processes stay flat for hours.

A run of a small model is started like by a user, with frequent evaluations and checkpoints. Every process of the job is
measured at intervals, and added up by role. A quantity grows if its median over the last quarter of the time is above
the one over the quarter before by more than its bound: the first half is for caches that fill.
"""

import csv
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

import psutil
from matplotlib.figure import Figure

from perceiver_dist.benchmarks import DEFAULT_CONFIG, JOBS
from perceiver_dist.benchmarks.result_table import ResultTable
from perceiver_dist.benchmarks.start_processes import name_of
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.display.run_figures import write_figure
from perceiver_dist.errors import UserError

_OPTIONS = (
    # A small model, so that most of the time goes to what is around it.
    "--model.latents=8", "--model.width=32", "--model.self_attends_per_block=1", "--train.micro_batch=8",
    "--train.steps=1000000000", "--train.log_every=10", "--train.checkpoint_every=50", "--train.eval_every=500",
)  # fmt: skip

_RUN = "soak"

_ROLES = {
    "worker template": ("worker template", "requests for a fork"),
    "read tasks": ("ReadTask", "MapBatches", "index_shard", "read tasks, idle workers", "workers that start"),
    "Ray: daemons": ("Ray: GCS", "Ray: raylet", "Ray: agents", "Ray: log monitor", "Ray: autoscaler"),
    "Ray: dashboard": ("Ray: dashboard",),
    "Ray Train: controller": ("Ray Train: controller",),
    "driver": ("driver",),
    "ranks": ("ranks",),
    "tracker": ("Tracker",),
}
"""Roles, and the names of their processes in the benchmark of starts. Others are actors of Ray Data and Ray Train."""

_OTHERS = "Ray: actors"

_MIB = 1 << 20


@dataclass(frozen=True)
class RoleUse:
    """What the processes of one role use at one time.

    Attributes:
        seconds: Seconds since the start.
        role: Their role.
        processes: Number of them.
        memory: Proportional set size in MiB: a page that several processes share counts for each by its part.
        shared: Resident shared memory in MiB, such as blocks of the object store; what processes share counts in each.
        descriptors: Open file descriptors.
        threads: Threads.
    """

    seconds: float
    role: str
    processes: int
    memory: float
    shared: float
    descriptors: int
    threads: int


BOUNDS = {"processes": 2.0, "memory": 60.0, "shared": 60.0, "descriptors": 10.0, "threads": 5.0}
"""Growth per hour that counts as flat, by quantity: above what comes and goes with read tasks, and so little that a run
of a week has room for it. Memory in MiB: the tracker keeps each logged step, 1 KB."""


def measure_soak(
    minutes: float = 120, interval: float = 10, table: str | None = None, figure: str | None = None
) -> ResultTable:
    """Train a small model for some time, and measure what the processes of the job use.

    Args:
        minutes: How long to train.
        interval: Seconds between two measurements.
        table: CSV file for all measurements.
        figure: PNG file for the curves.

    Raises:
        UserError: An option is out of range, or the run ended early.
    """
    if minutes * 60 < 8 * interval or interval <= 0:
        raise UserError(
            f"--minutes is {minutes:g} and --interval {interval:g}; at least 8 measurements are needed"
        )
    with tempfile.TemporaryDirectory() as storage:
        uses = _watch(storage, minutes * 60, interval, Path(table) if table else None)
        steps = RunFolder(f"{storage}/{_RUN}").newest_step()
    if figure:
        draw(uses, Path(figure))
    return summary(uses, f"{minutes:g} minutes, {steps:,} steps")


def _watch(storage: str, seconds: float, interval: float, table: Path | None) -> list[RoleUse]:
    """Run the job for some seconds, and return what it used.

    Raises:
        UserError: The run ended early, or not as preempted.
    """
    options = (*_OPTIONS, f"--storage.path={storage}", f"--storage.run_name={_RUN}")
    command = [sys.executable, str(JOBS / "train_multimodal.py"), "--config", DEFAULT_CONFIG, *options]
    screen = Path(storage) / "screen.txt"
    uses: list[RoleUse] = []
    began = time.monotonic()
    with screen.open("w") as output:
        job = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)  # noqa: S603
    try:
        while (now := time.monotonic() - began) < seconds and job.poll() is None:
            uses += use_of(job.pid, now)
            if table is not None:
                _write(uses, table)
            time.sleep(interval)
    finally:
        ended_early = job.poll() is not None
        job.send_signal(signal.SIGTERM)
        status = job.wait()
    if ended_early or status != 128 + signal.SIGTERM:
        last = (screen.read_text().strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"the run ended with status {status}: {last}")
    return uses


def use_of(job: int, seconds: float) -> list[RoleUse]:
    """Return what a job and the processes that it has started use, by role.

    Args:
        job: Process number of the job.
        seconds: Seconds since the start.
    """
    found: defaultdict[str, list[tuple[float, float, int, int]]] = defaultdict(list)
    driver = psutil.Process(job)
    for process in [driver, *driver.children(recursive=True)]:
        try:
            role = "driver" if process.pid == job else _role_of(" ".join(process.cmdline()))
            found[role].append(_use_of_process(process))
        except (psutil.Error, OSError):
            continue  # it has ended
    return [
        RoleUse(
            round(seconds, 1),
            role,
            len(them),
            round(sum(memory for memory, *_ in them), 1),
            round(sum(shared for _, shared, *_ in them), 1),
            sum(descriptors for *_, descriptors, _ in them),
            sum(threads for *_, threads in them),
        )
        for role, them in sorted(found.items())
    ]


def _role_of(title: str) -> str:
    name = name_of(title)
    return next((role for role, names in _ROLES.items() if name in names), _OTHERS)


def _use_of_process(process: psutil.Process) -> tuple[float, float, int, int]:
    """Return memory and shared memory in MiB, file descriptors and threads of a process."""
    folder = Path(f"/proc/{process.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    rollup = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
    # Both files have lines such as "Pss:    1234 kB".
    memory, shared = int(rollup["Pss"].split()[0]) / 1024, int(status["RssShmem"].split()[0]) / 1024
    return memory, shared, process.num_fds(), int(status["Threads"])


def _write(uses: Sequence[RoleUse], table: Path) -> None:
    columns = [column.name for column in fields(RoleUse)]
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows([getattr(use, column) for column in columns] for use in uses)


def summary(uses: Sequence[RoleUse], length: str) -> ResultTable:
    """Return a table with the growth of each quantity by role, and a line that says which of them grow.

    Args:
        uses: All measurements.
        length: How long the run was, for that line.
    """
    rows: list[list[str]] = []
    growing: list[str] = []
    end = max(use.seconds for use in uses)
    for role in _roles(uses):
        for quantity, bound in BOUNDS.items():
            third, last = (
                _median(uses, role, quantity, end * part, end * (part + 0.25)) for part in (0.5, 0.75)
            )
            growth = (last - third) / (end / 4) * 3600
            if growth > bound:
                growing.append(f"{quantity} of {role}")
            figures = [third, last, growth, bound]
            rows.append(
                [role, quantity, *(f"{value:,.1f}" for value in figures), "no" if growth > bound else "yes"]
            )
    verdict = f"{length}: " + (f"growing: {', '.join(growing)}" if growing else "everything is flat")
    return ResultTable(
        ("role", "quantity", "third quarter", "last quarter", "growth per hour", "bound", "flat"),
        rows,
        [verdict],
    )


def _roles(uses: Iterable[RoleUse]) -> list[str]:
    return sorted({use.role for use in uses})


def _median(uses: Iterable[RoleUse], role: str, quantity: str, begin: float, end: float) -> float:
    """Return the median of a role's quantity within a time; 0 if the role has no process there."""
    values = [getattr(use, quantity) for use in uses if use.role == role and begin <= use.seconds <= end]
    return float(median(values)) if values else 0.0


def draw(uses: Sequence[RoleUse], path: Path) -> None:
    """Draw the measurements as a PNG file: a panel for each quantity, a line for each role.

    Args:
        uses: All measurements.
        path: The file.
    """
    titles = {
        "memory": "memory (PSS), MiB",
        "shared": "shared memory, resident, MiB",
        "descriptors": "file descriptors",
        "threads": "threads",
    }
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, (quantity, title) in zip(panels.flat, titles.items(), strict=True):
        for number, role in enumerate(_roles(uses)):
            of_role = [use for use in uses if use.role == role]
            minutes = [use.seconds / 60 for use in of_role]
            values = [getattr(use, quantity) for use in of_role]
            style = "-" if number < 10 else "--"  # Matplotlib's colours repeat after ten lines
            axes.plot(minutes, values, style, label=role, linewidth=1.4)
        axes.set(title=title, xlabel="minutes", ylim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    write_figure(figure, path)
