"""Time of a rank's forward passes, which tells a slow rank from one that waits for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class ForwardTime:
    """Time of forward passes, which no other rank influences: only ZeRO stage 3 communicates in them.

    On CUDA it is the device's own time, by events, so that no pass waits for it.

    Args:
        device: Device that computes them.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure what is computed inside.

        Yields:
            Nothing.
        """
        if not self._on_gpu:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            return
        new: Any = torch.cuda.Event  # PyTorch's class has no types.
        began, ended = new(enable_timing=True), new(enable_timing=True)
        began.record()
        yield
        ended.record()
        self._events.append((began, ended))

    def take(self) -> float:
        """Return the seconds since the last call. On CUDA it waits for the last pass."""
        if self._events:
            self._events[-1][1].synchronize()
            # Milliseconds.
            self._seconds = sum(began.elapsed_time(ended) for began, ended in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
