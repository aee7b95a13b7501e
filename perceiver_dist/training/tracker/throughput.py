"""How fast a group of workers trains, and how long it waits for data."""

from collections.abc import Mapping


class ThroughputMeter:
    """Speed since a group of workers started, the first window left out: it waits for the first units."""

    def __init__(self) -> None:
        self._first = True
        self._seconds = self._samples = self._waited = 0.0

    def add(self, values: Mapping[str, float]) -> None:
        """Take a logged step into account.

        Args:
            values: What was logged of it.
        """
        if not self._first:
            seconds = values["train/seconds"]
            self._seconds += seconds
            self._samples += seconds * values["train/samples_per_second"]
            self._waited += seconds * values["train/data_wait_fraction"]
        self._first = False

    def means(self) -> tuple[float, float]:
        """Return samples per second, and the share of the time that was spent waiting for data."""
        if not self._seconds:
            return 0.0, 0.0
        return self._samples / self._seconds, self._waited / self._seconds
