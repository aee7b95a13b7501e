"""System metrics (CPU, memory, disk, network, GPU) of the tracker's machine, measured by MLflow's monitors.

MLflow's own thread calls the server between two measurements and ends at the first call that fails. This one calls no
server, so it keeps measuring while MLflow is unavailable.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_PREFIX = "system/"


def system_metrics_steps(run: Any) -> int:
    """Return how many measurements of system metrics a run has.

    Args:
        run: MLflow's `Run`.
    """
    # Run.data.metrics, which is public, has the newest values but not their steps.
    steps = [metric.step for metric in run.data._metric_objs if metric.key.startswith(_PREFIX)]
    return max(steps) + 1 if steps else 0


class SystemMetrics(threading.Thread):
    """Thread that measures until `finish`, at the interval of MLflow's environment variables (10 seconds by default).

    Args:
        run_id: The MLflow run.
        tracking_uri: MLflow tracking URI; it is not called.
        record: Called with the values of each measurement, by name.
    """

    def __init__(self, run_id: str, tracking_uri: str, record: Callable[[Mapping[str, float]], None]) -> None:
        super().__init__(name="system metrics", daemon=True)
        monitor: Any = SystemMetricsMonitor  # MLflow's class has no types.
        self._monitor = monitor(run_id, tracking_uri=tracking_uri)
        self._record = record
        self._finished = threading.Event()

    def run(self) -> None:
        """Measure until `finish` is called."""
        while True:
            for _ in range(self._monitor.samples_before_logging):
                self._monitor.collect_metrics()
                if self._finished.wait(self._monitor.sampling_interval):
                    return
            prefix = f"{_PREFIX}{self._monitor.node_id}/" if self._monitor.node_id else _PREFIX
            self._record(
                {f"{prefix}{name}": value for name, value in self._monitor.aggregate_metrics().items()}
            )
            for measured in self._monitor.monitors:
                measured.clear_metrics()

    def finish(self) -> None:
        """Stop measuring."""
        self._finished.set()
        self.join()
