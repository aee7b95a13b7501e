"""How a run is doing, for Prometheus: Ray exports these from every node's metrics port as ray_perceiver_..."""

from ray.util.metrics import Gauge

from perceiver_dist.training.tracker.logged_metrics import StepMetrics

GAUGES = {
    "train/samples_per_second": (
        "perceiver_samples_per_second",
        "Samples learned from per second, over all ranks.",
    ),
    "train/step_seconds": (
        "perceiver_step_seconds",
        "Seconds of an optimizer step, waiting for data included.",
    ),
    "train/data_wait_fraction": (
        "perceiver_data_wait_fraction",
        "Share of the time, 0 to 1, waiting for data.",
    ),
    "train/loss": ("perceiver_loss", "Training loss of the last logged steps, in nats."),
    "train/gradient_norm": (
        "perceiver_gradient_norm",
        "Global L2 norm of the last gradient, before clipping.",
    ),
    "train/gpu_memory_bytes": ("perceiver_gpu_memory_bytes", "Most GPU memory that rank 0 ever held."),
    "data/quarantined": (
        "perceiver_quarantined_samples",
        "Samples that could not be used, each counted once.",
    ),
    "step": ("perceiver_step", "Optimizer steps taken."),
}
"""Name of a logged value -> name and meaning of its gauge."""


class PrometheusMetrics:
    """The gauges of one run; every one is labelled with the run's name.

    Args:
        run_name: Name of the run.
    """

    def __init__(self, run_name: str) -> None:
        self._gauges = {
            name: Gauge(gauge, description=meaning, tag_keys=("run",))
            for name, (gauge, meaning) in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run_name})

    def show(self, metrics: StepMetrics) -> None:
        """Set the gauges that there is a value for.

        Args:
            metrics: Metrics of the newest logged steps.
        """
        for name, value in {**metrics.flat(), "step": float(metrics.step)}.items():
            if name in self._gauges:
                self._gauges[name].set(value)
