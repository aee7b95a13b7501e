"""Python runs this file at the start of every process whose PYTHONPATH has its folder: it times the imports.

`perceiver_dist.benchmarks.start_processes` reads the files. Each line is the time since the epoch at which an import
began or, for the first line, at which Python was ready, and the wall and CPU seconds that it took. Imports within
imports count once. CPython calls `_find_and_load` only for modules that are not loaded yet.
"""

import importlib._bootstrap as bootstrap
import os
import threading
import time
from pathlib import Path
from typing import Any, TextIO

FOLDER = "IMPORT_PROBE_FOLDER"
"""Environment variable with the folder of the files, one per process."""


class _Probe:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._importing = threading.local()
        self._load: Any = bootstrap._find_and_load  # type: ignore[attr-defined]
        self._file = self._open()
        bootstrap._find_and_load = self._timed_load  # type: ignore[attr-defined]
        os.register_at_fork(after_in_child=self._reopen)

    def _open(self) -> TextIO:
        file = (self._folder / f"{os.getpid()}.txt").open("w", buffering=1)
        file.write(f"{time.time()} 0 0\n")
        return file

    def _reopen(self) -> None:
        self._file = self._open()

    def _timed_load(self, name: str, import_: Any) -> Any:
        if getattr(self._importing, "now", False):
            return self._load(name, import_)
        self._importing.now = True
        began, wall, cpu = time.time(), time.perf_counter(), time.thread_time()
        try:
            return self._load(name, import_)
        finally:
            self._importing.now = False
            self._file.write(f"{began} {time.perf_counter() - wall} {time.thread_time() - cpu}\n")


if FOLDER in os.environ:
    _Probe(Path(os.environ[FOLDER]))
