"""Masks and handlers of the signals that end a job; `perceiver_dist/cluster/termination.py` says why.

They are SIGTERM, and SIGHUP, which the system sends to what runs in a terminal when that is closed or its connection
breaks. A job that was started to ignore SIGHUP, by nohup(1), keeps ignoring it. This module must not import Ray.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def handled_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end this process: those of SIGTERM and SIGHUP that it does not ignore."""
    return tuple(number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN)


@contextmanager
def without_termination_signals() -> Iterator[None]:
    """Block the signals for this thread in this context, and for good in processes and threads that it starts there.

    A signal that arrives meanwhile is delivered at the end of the context.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def keep_termination_signals() -> Iterator[None]:
    """Keep this process's handling of the signals in a context in which Ray sets another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
