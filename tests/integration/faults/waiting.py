"""Waiting of tests for what other processes do."""

import threading
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Return as soon as a condition is true.

    Args:
        condition: Asked ten times a second.
        seconds: After so long the test fails. Generous, as it only ends a test that would wait for ever.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        threading.Event().wait(0.1)
