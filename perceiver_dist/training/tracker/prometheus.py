"""Prometheus metrics of a run, which Ray exports from every node's metrics port as ray_perceiver_..."""

from ray.util.metrics import Gauge

from perceiver_dist.training.tracker.logged_metrics import StepMetrics

GAUGES = {
    "train/samples_per_second": (
        "perceiver_samples_per_second",
        "Training samples per second, over all ranks.",
    ),
    "train/step_seconds": (
        "perceiver_step_seconds",
        "Seconds per optimizer step, including the wait for data.",
    ),
    "train/data_wait_fraction": (
        "perceiver_data_wait_fraction",
        "Share of the time spent waiting for data, 0 to 1.",
    ),
    "train/loss": ("perceiver_loss", "Training loss of the last logged steps, in nats."),
    "train/gradient_norm": (
        "perceiver_gradient_norm",
        "Global L2 norm of the last gradient, before clipping.",
    ),
    "train/gpu_memory_bytes": ("perceiver_gpu_memory_bytes", "Peak GPU memory of rank 0."),
    "data/quarantined": (
        "perceiver_quarantined_samples",
        "Bad samples, each counted once.",
    ),
    "step": ("perceiver_step", "Optimizer steps taken."),
}
"""Flat name of a metric -> name and description of its gauge."""


class PrometheusMetrics:
    """Gauges of one run, labelled with its name.

    Args:
        run_name: Name of the run.
    """

    def __init__(self, run_name: str) -> None:
        self._gauges = {
            name: Gauge(gauge, description=meaning, tag_keys=("run",))
            for name, (gauge, meaning) in GAUGES.items()
        }
        for gauge in self._gauges.values():
            # The trials of a search share a cluster, and are told apart by the name of the run.
            gauge.set_default_tags({"run": run_name})

    def show(self, metrics: StepMetrics) -> None:
        """Set the gauges of the metrics that have a value.

        Args:
            metrics: Metrics of the newest logged steps.
        """
        for name, value in {**metrics.flat(), "step": float(metrics.step)}.items():
            if name in self._gauges:
                self._gauges[name].set(value)
