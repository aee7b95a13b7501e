"""Prometheus metrics of a run, which Ray exports from every node's metrics port as ray_perceiver_..."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

from perceiver_dist.training.liveness.stragglers import RankTimes
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

RANK_GAUGES = {
    "forward_seconds": (
        "perceiver_rank_forward_seconds",
        "Seconds of a rank's forward passes per optimizer step, in which it waits for no other rank.",
    ),
    "data_wait_seconds": (
        "perceiver_rank_data_wait_seconds",
        "Seconds that a rank waits for data per optimizer step.",
    ),
}
"""Attribute of `RankTimes` -> name and description of its gauge, which has a rank and a host."""

SIGNAL_GAUGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "entropy": (
        "perceiver_attention_entropy",
        "Mean entropy of a cross-attend's attention, as a fraction of that of even attention.",
        ("source", "cross_attend"),
    ),
    "saturated": (
        "perceiver_attention_saturated",
        "Share of latents that give one token nearly all of their attention.",
        ("source", "cross_attend"),
    ),
    "latent_cosine": (
        "perceiver_latent_cosine",
        "Mean cosine between two latents of a sample after the last block.",
        ("source",),
    ),
    "weight_norm": ("perceiver_weight_norm", "L2 norm of the weights of a part of the model.", ("part",)),
    "gradient_norm": (
        "perceiver_gradient_norm_by_part",
        "L2 norm of the last gradient of a part of the model, before clipping.",
        ("part",),
    ),
    "update_ratio": (
        "perceiver_update_ratio",
        "L2 norm of the last update of a part of the model, divided by that of its weights.",
        ("part",),
    ),
    "clipped": ("perceiver_clipped_fraction", "Share of the last logged steps that were clipped.", ()),
}
"""First word of a signal's name -> name and description of its gauge, and the labels that the other words are."""


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
        self._of_ranks = {
            attribute: Gauge(name, description=meaning, tag_keys=("run", "rank", "host"))
            for attribute, (name, meaning) in RANK_GAUGES.items()
        }
        self._signals = {
            kind: Gauge(name, description=meaning, tag_keys=("run", *labels))
            for kind, (name, meaning, labels) in SIGNAL_GAUGES.items()
        }
        self._run_name = run_name
        self._shown: dict[int, str] = {}

    def show(self, metrics: StepMetrics, hosts: Mapping[int, str]) -> None:
        """Set the gauges of the metrics that have a value.

        Args:
            metrics: Metrics of the newest logged steps.
            hosts: Rank -> name of its host.
        """
        for name, value in {**metrics.flat(), "step": float(metrics.step)}.items():
            if name in self._gauges:
                self._gauges[name].set(value)
        for name, value in metrics.signals.items():
            self._show_signal(name, value)
        # A gauge keeps its last value, also of a rank that is gone or has moved.
        for gone in self._shown.items() - hosts.items():
            self._show_rank(*gone, RankTimes(0.0, 0.0))
        self._shown = dict(hosts)
        for rank, host in hosts.items():
            if rank < len(metrics.ranks):
                self._show_rank(rank, host, metrics.ranks[rank])

    def _show_signal(self, name: str, value: float) -> None:
        kind, _, rest = name.partition("/")
        *_, labels = SIGNAL_GAUGES[kind]
        # From the right, since a source's name may contain a slash.
        words = rest.rsplit("/", len(labels) - 1) if labels else []
        self._signals[kind].set(value, tags={"run": self._run_name, **dict(zip(labels, words, strict=True))})

    def _show_rank(self, rank: int, host: str, times: RankTimes) -> None:
        tags = {"run": self._run_name, "rank": str(rank), "host": host}
        for attribute, gauge in self._of_ranks.items():
            gauge.set(getattr(times, attribute), tags=tags)
