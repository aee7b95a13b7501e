"""How fast a group of workers trains, and how long it waits for data."""

from perceiver_dist.training.tracker.logged_metrics import StepMetrics


class ThroughputMeter:
    """Speed since a group of workers started, the first window left out: it waits for the first units."""

    def __init__(self) -> None:
        self._first = True
        self._seconds = self._samples = self._waited = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Take a logged step into account.

        Args:
            metrics: What was logged of it.
        """
        if not self._first:
            self._seconds += metrics.seconds
            self._samples += metrics.seconds * metrics.samples_per_second
            self._waited += metrics.seconds * metrics.data_wait_fraction
        self._first = False

    def means(self) -> tuple[float, float]:
        """Return samples per second, and the share of the time that was spent waiting for data."""
        if not self._seconds:
            return 0.0, 0.0
        return self._samples / self._seconds, self._waited / self._seconds
