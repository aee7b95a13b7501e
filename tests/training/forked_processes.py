"""Processes for tests, forked from one that has already imported torch, DeepSpeed and MLflow.

Each test gets fresh processes, but importing these libraries takes seconds of CPU time per process. The fork server
imports them once per session; a process forked from it starts in milliseconds. It never runs anything else, so a fork
breaks nothing: there are no threads of Python, no process group and no open connection.
"""

import os
from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from multiprocessing.pool import Pool
from typing import Any

from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessContext, start_processes

# The fork server inherits this. Otherwise it has a thread of a linear algebra library, which a fork does not copy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_METHOD = "forkserver"
_IMPORTED = [
    "perceiver_dist.training.zero.engine",
    "perceiver_dist.training.zero.partitions",
    "perceiver_dist.training.zero.async_save",
    # DeepSpeed imports these when it builds its first engine.
    "deepspeed",
    "torch._dynamo",
    "functorch.compile",
    "perceiver_dist.tracking.background_writer",
    "perceiver_dist.tracking.mlflow_run",
]


def start(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> ProcessContext:
    """Start calling `function(number, *arguments)` in as many processes, which count from 0."""
    set_forkserver_preload(_IMPORTED)
    started: ProcessContext = start_processes(  # type: ignore[no-untyped-call] # torch leaves it without types
        function, arguments, nprocs=processes, join=False, start_method=_METHOD
    )
    return started


def call(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Call `function(number, *arguments)` in as many processes at once, and wait for their end.

    Raises:
        Exception: One of the processes raised it, or died.
    """
    started = start(function, arguments, processes)
    while not started.join():  # returns at the end of each process
        pass


def pool_of_one() -> Pool:
    """Return a pool of one process."""
    set_forkserver_preload(_IMPORTED)
    pool: Pool = multiprocessing.get_context(_METHOD).Pool(1)
    return pool
