"""Masks and handlers of SIGTERM; `perceiver_dist/cluster/termination.py` says why. It must not import Ray."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_sigterm() -> Iterator[None]:
    """Block SIGTERM for this thread in this context, and for good in the processes and threads that it starts there.

    A signal that arrives meanwhile is delivered at the end of the context.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def keep_sigterm() -> Iterator[None]:
    """Keep this process's handling of SIGTERM in a context in which Ray sets another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
