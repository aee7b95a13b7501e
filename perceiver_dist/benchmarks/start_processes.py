"""Processes of a starting job: when each begins, and how long it starts Python, imports, computes and waits."""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

PROBE = Path(__file__).parent / "import_probe"
"""Folder for PYTHONPATH, so that every Python process times its imports."""

_NAMES = {
    "worker_template.py": "worker template",
    "forked_worker.py": "requests for a fork",
    "multiprocessing": "rendering",
    "gcs_server": "Ray: GCS",
    "/raylet/raylet": "Ray: raylet",
    "dashboard/dashboard.py": "Ray: dashboard",
    "dashboard/agent.py": "Ray: agents",
    "runtime_env/agent": "Ray: agents",
    "log_monitor.py": "Ray: log monitor",
    "monitor.py": "Ray: autoscaler",
    "train_multimodal.py": "driver",
    "RayTrainWorker": "ranks",
    "TrainController": "Ray Train: controller",
    "Agent": "Ray: agents",
    "IDLE": "read tasks, idle workers",
    "default_worker.py": "workers that start",
    "setup_worker.py": "workers that start",
}
"""Text in the command line of a process, and its name in the table; the first that is found counts."""


@dataclass
class _Process:
    """What is known of a process: start and newest title, and CPU seconds up to the last look at it."""

    begins: float
    title: str = ""
    cpu: float = 0.0


@dataclass(frozen=True)
class ProcessTimes:
    """Times of all processes of a name, in seconds, up to the end of a measurement; sums except for `begins`.

    Attributes:
        name: The name.
        count: Number of processes.
        begins: Start of the first one, since the start of the job.
        spawn: From the start of a process to its first line of Python; 0 for a fork and for other programs.
        imports: Wall time of imports.
        import_cpu: Their CPU time.
        cpu: CPU time of everything.
        waiting: Time in which it neither ran nor was about to, or had no core.
    """

    name: str
    count: int
    begins: float
    spawn: float
    imports: float
    import_cpu: float
    cpu: float
    waiting: float

    @property
    def work(self) -> float:
        """CPU seconds without imports."""
        return max(self.cpu - self.import_cpu, 0.0)


class ProcessWatch:
    """Watch on a job and the processes that it starts.

    Args:
        job: Process number of the job.
        folder: Folder of the files of `import_probe`.
    """

    def __init__(self, job: int, folder: Path) -> None:
        self._job = psutil.Process(job)
        self._folder = folder
        # psutil reads starts from the kernel's clock, whose zero may differ from the system clock's.
        self._start = self._job.create_time()
        self._clock_difference = time.time() - self._start
        self._processes: dict[int, _Process] = {}

    def look(self) -> None:
        """Read titles and CPU times; a process that has ended since keeps what was seen last."""
        try:
            found = [self._job, *self._job.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in found:
            try:
                with process.oneshot():
                    times, title = process.cpu_times(), " ".join(process.cmdline())
                    seen = self._processes.setdefault(
                        process.pid, _Process(process.create_time() - self._start)
                    )
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            seen.cpu = times.user + times.system
            seen.title = title or seen.title

    def times(self, seconds: float) -> list[ProcessTimes]:
        """Return the times by name of the processes, the earliest first.

        Args:
            seconds: End of the measurement, in seconds since the job's start.
        """
        groups: dict[str, list[tuple[int, _Process]]] = defaultdict(list)
        for number, process in self._processes.items():
            groups[name_of(process.title)].append((number, process))
        return sorted(
            (self._sum(name, members, seconds) for name, members in groups.items()), key=lambda of: of.begins
        )

    def _sum(self, name: str, members: list[tuple[int, _Process]], seconds: float) -> ProcessTimes:
        spawn = wall = cpu_of_imports = 0.0
        for number, process in members:
            file = self._folder / f"{number}.txt"
            lines = file.read_text().splitlines() if file.exists() else []
            events = [tuple(map(float, line.split())) for line in lines if line.count(" ") == 2]
            since = [(at - self._start - self._clock_difference, *took) for at, *took in events]
            spawn += max(since[0][0] - process.begins, 0.0) if since else 0.0
            counted = [event for event in since[1:] if event[0] < seconds]
            wall += sum(event[1] for event in counted)
            cpu_of_imports += sum(event[2] for event in counted)
        cpu = sum(process.cpu for _, process in members)
        lifetime = sum(seconds - process.begins for _, process in members)
        return ProcessTimes(
            name,
            len(members),
            min(process.begins for _, process in members),
            spawn,
            wall,
            cpu_of_imports,
            cpu,
            max(lifetime - cpu, 0.0),
        )


def name_of(title: str) -> str:
    """Return the name of a process in the table.

    Args:
        title: Its command line, which Ray's workers set to the actor or task that they run.
    """
    for text, name in _NAMES.items():
        if text in title:
            return name
    actor = title.removeprefix("ray::").split(".")[0].split("(")[0].strip()
    return actor if title.startswith("ray::") else "other"


def rows_of(times: Iterable[ProcessTimes]) -> list[list[str]]:
    """Return the rows of a table: name, number, begin, an empty cell, spawn, imports, work, waiting, CPU.

    Args:
        times: The processes.
    """
    return [
        [of.name, str(of.count), f"{of.begins:.1f}", ""]
        + [f"{value:.1f}" for value in (of.spawn, of.imports, of.work, of.waiting, of.cpu)]
        for of in times
    ]
