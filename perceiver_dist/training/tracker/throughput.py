"""Throughput and data wait of a group of workers."""

from perceiver_dist.training.tracker.logged_metrics import StepMetrics


class ThroughputMeter:
    """Mean throughput of a group of workers, without the first log, which includes the wait for the first units."""

    def __init__(self) -> None:
        self._first = True
        self._seconds = self._samples = self._waited = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Add the steps of one log.

        Args:
            metrics: Their metrics.
        """
        if not self._first:
            self._seconds += metrics.seconds
            self._samples += metrics.seconds * metrics.samples_per_second
            self._waited += metrics.seconds * metrics.data_wait_fraction
        self._first = False

    def means(self) -> tuple[float, float]:
        """Return samples per second and the share of the time spent waiting for data; 0 before the second log."""
        if not self._seconds:
            return 0.0, 0.0
        return self._samples / self._seconds, self._waited / self._seconds
