"""Metrics of logged steps and of evaluations, and their flat names in metrics.jsonl, MLflow and Prometheus.

Code passes the two dataclasses on. They become flat names such as `train/loss` only where a record is written, and are
read back from metrics.jsonl when a run is resumed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from perceiver_dist.strict_json import numbers, to_json
from perceiver_dist.training.liveness.stragglers import RankTimes


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of the steps since the last log. Counts are floats too, as MLflow keeps them.

    Attributes:
        step: Optimizer steps taken; 0 before the first.
        losses: Mean training loss by source, in nats; without the sources that had no finite loss.
        loss: The same over all sources; NaN if no loss was finite.
        seconds: Time, mean over the ranks, without evaluations and checkpoints.
        data_wait_fraction: Share of the time that ranks waited for data, 0 to 1.
        learning_rate: Learning rate of the last step.
        gradient_norm: Global L2 norm of the last gradient, before clipping; None if it is not finite.
        skipped_steps: Steps skipped since the run began, because their gradient was not finite.
        samples_per_second: Samples learned from, over all ranks.
        step_seconds: Seconds per optimizer step.
        samples_seen: Samples learned from since the run began.
        gpu_memory_bytes: Peak GPU memory of rank 0; None on CPUs.
        quarantined: Samples that could not be used, each counted once; the tracker counts them.
        signals: Signals by name, see `StepSignals.close`; their flat names are `signals/<name>`.
        ranks: Times of each rank; its flat names are `ranks/<rank>/...`, and left out with a single rank.
    """

    step: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    loss: float = math.nan
    seconds: float = 0.0
    data_wait_fraction: float = 0.0
    learning_rate: float = 0.0
    gradient_norm: float | None = None
    skipped_steps: float = 0.0
    samples_per_second: float = 0.0
    step_seconds: float = 0.0
    samples_seen: float = 0.0
    gpu_memory_bytes: float | None = None
    quarantined: float = 0.0
    signals: Mapping[str, float] = field(default_factory=dict)
    ranks: tuple[RankTimes, ...] = ()

    def flat(self) -> dict[str, float]:
        """Return the values by flat name, without the step."""
        values = {name: getattr(self, attribute) for attribute, name in _NAMES.items()}
        losses = {f"{source}{_SOURCE_LOSS}": loss for source, loss in self.losses.items()}
        times = {
            f"{_RANKS}{rank}/{name}": value
            for rank, of_rank in enumerate(self.ranks)
            if len(self.ranks) > 1
            for name, value in asdict(of_rank).items()
        }
        known = {name: value for name, value in values.items() if value is not None}
        signals = {f"{_SIGNALS}{name}": value for name, value in self.signals.items()}
        return losses | known | signals | times


_NAMES = {
    "loss": "train/loss",
    "seconds": "train/seconds",
    "data_wait_fraction": "train/data_wait_fraction",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "skipped_steps": "train/skipped_steps",
    "samples_per_second": "train/samples_per_second",
    "step_seconds": "train/step_seconds",
    "samples_seen": "train/samples_seen",
    "gpu_memory_bytes": "train/gpu_memory_bytes",
    "quarantined": "data/quarantined",
}
"""Attribute of `StepMetrics` -> flat name, in the order of metrics.jsonl."""

_SOURCE_LOSS = "/train_loss"
_SIGNALS = "signals/"
_RANKS = "ranks/"


@dataclass(frozen=True)
class EvaluationMetrics:
    """Metrics of one evaluation on the held-out samples.

    Attributes:
        step: Optimizer steps taken.
        sources: Metric -> value by source, as in `Scores`; NaN where no sample defines the value.
    """

    step: int
    sources: Mapping[str, Mapping[str, float]]

    @classmethod
    def from_flat(cls, step: int, values: Mapping[str, float]) -> "EvaluationMetrics":
        """Return the metrics that `flat` returned.

        Args:
            step: Optimizer steps taken.
            values: `<source>/<metric>` and its value.
        """
        sources: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            source, _, metric = name.partition("/")
            sources.setdefault(source, {})[metric] = value
        return cls(step, sources)

    def flat(self) -> dict[str, float]:
        """Return the values as `<source>/<metric>`, without the step."""
        return {
            f"{source}/{metric}": value
            for source, metrics in self.sources.items()
            for metric, value in metrics.items()
        }


LoggedMetrics = StepMetrics | EvaluationMetrics


def evaluations_in(history: list[LoggedMetrics]) -> dict[int, EvaluationMetrics]:
    """Return the evaluations of a history by their step.

    Args:
        history: What was logged, in order.
    """
    return {metrics.step: metrics for metrics in history if isinstance(metrics, EvaluationMetrics)}


def to_jsonl(history: list[LoggedMetrics]) -> str:
    """Return the text of metrics.jsonl.

    Args:
        history: What was logged, in order.
    """
    return "".join(to_json({"step": metrics.step, **metrics.flat()}) + "\n" for metrics in history)


def from_jsonl(text: str) -> list[LoggedMetrics]:
    """Return what `to_jsonl` was given.

    Args:
        text: Content of metrics.jsonl. A last line without an end was being written when its process was killed, and is
            left out.
    """
    return [_from_record(numbers(json.loads(line))) for line in text.split("\n")[:-1]]


def _from_record(record: dict[str, float]) -> LoggedMetrics:
    step = int(record.pop("step"))
    # Every logged step has its seconds, and no metric of an evaluation is called so. The loss would not tell them
    # apart: evaluating a source called "train" gives a train/loss too.
    if _NAMES["seconds"] not in record:
        return EvaluationMetrics.from_flat(step, record)
    losses = {
        name.removesuffix(_SOURCE_LOSS): value
        for name, value in record.items()
        if name.endswith(_SOURCE_LOSS)
    }
    signals = {
        name.removeprefix(_SIGNALS): value
        for name, value in record.items()
        # A source may be called "signals".
        if name.startswith(_SIGNALS) and not name.endswith(_SOURCE_LOSS)
    }
    values: dict[str, Any] = {attribute: record[name] for attribute, name in _NAMES.items() if name in record}
    return StepMetrics(step=step, losses=losses, signals=signals, ranks=_ranks_in(record), **values)


def _ranks_in(record: Mapping[str, float]) -> tuple[RankTimes, ...]:
    times: dict[int, dict[str, float]] = {}
    for name, value in record.items():
        rank, _, attribute = name.removeprefix(_RANKS).partition("/")
        if name.startswith(_RANKS) and rank.isdigit():
            times.setdefault(int(rank), {})[attribute] = value
    return tuple(RankTimes(**times[rank]) for rank in sorted(times))
