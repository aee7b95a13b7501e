"""Processes for the ranks of a test, forked from one that has imported what they need.

Each test gets fresh processes, with a process group and a DeepSpeed of their own, but importing torch and DeepSpeed
takes five seconds of CPU time per process. The fork server imports them once per session; a process forked from it
starts in milliseconds. Nothing that a fork would break is there yet: neither threads nor a process group.
"""

from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from multiprocessing.pool import Pool
from typing import Any

from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessContext, start_processes

_METHOD = "forkserver"
_IMPORTED = [
    "perceiver_dist.training.zero.engine",
    "perceiver_dist.training.zero.partitions",
    "perceiver_dist.training.zero.async_save",
    # DeepSpeed imports these when it builds its first engine.
    "deepspeed",
    "torch._dynamo",
    "functorch.compile",
]


def start_ranks(function: Callable[..., None], arguments: tuple[Any, ...], world_size: int) -> ProcessContext:
    """Start calling `function(rank, *arguments)` in as many processes."""
    set_forkserver_preload(_IMPORTED)
    processes: ProcessContext = start_processes(  # type: ignore[no-untyped-call] # torch leaves it without types
        function, arguments, nprocs=world_size, join=False, start_method=_METHOD
    )
    return processes


def call_on_ranks(function: Callable[..., None], arguments: tuple[Any, ...], world_size: int) -> None:
    """Call `function(rank, *arguments)` in as many processes, and wait for their end."""
    processes = start_ranks(function, arguments, world_size)
    while not processes.join():  # returns at the end of each process; raises what one of them raised
        pass


def one_process() -> Pool:
    """Return a pool of one such process, for calls that need no other rank."""
    set_forkserver_preload(_IMPORTED)
    pool: Pool = multiprocessing.get_context(_METHOD).Pool(1)
    return pool
