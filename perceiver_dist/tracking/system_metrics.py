"""The load of the machine that a run's record is kept on, as MLflow measures it.

MLflow's own thread asks the server between two measurements, and ends at the first question that is not answered. This
one asks nobody.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_PREFIX = "system/"


def system_metrics_steps(run: Any) -> int:
    """Return how many measurements of the load a run has.

    Args:
        run: MLflow's `Run`.
    """
    # MLflow shows the values of the newest metrics, but not their steps.
    steps = [metric.step for metric in run.data._metric_objs if metric.key.startswith(_PREFIX)]
    return max(steps) + 1 if steps else 0


class SystemMetrics(threading.Thread):
    """Measures until it is finished, as often as MLflow's environment variables say, by default every 10 seconds.

    Args:
        run_id: The MLflow run.
        tracking_uri: Where MLflow keeps its records; nothing is asked there.
        record: Takes the values of one measurement, by name.
    """

    def __init__(self, run_id: str, tracking_uri: str, record: Callable[[Mapping[str, float]], None]) -> None:
        super().__init__(name="machine load", daemon=True)
        monitor: Any = SystemMetricsMonitor  # MLflow leaves it without types
        self._monitor = monitor(run_id, tracking_uri=tracking_uri)
        self._record = record
        self._finished = threading.Event()

    def run(self) -> None:
        """Measure until the end."""
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
