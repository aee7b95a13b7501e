"""Metrics by which a run can choose its best checkpoint, and stop early: `train.best_metric`."""

from collections.abc import Sequence

from perceiver_dist.errors import UserError
from pipelines.shards.source import SourceConfig

MANY_CLASSES = 20
"""Number of classes from which top-5 accuracy is reported; with ten classes chance alone would reach 0.5."""


def best_metrics(source: SourceConfig) -> list[str]:
    """Return the names of a source's metrics that say how good a model is, the usual one first.

    Args:
        source: The source.
    """
    if source.task == "multilabel":
        return ["mean_average_precision", "roc_auc", "d_prime", "loss"]
    return ["accuracy", "loss"] + ["top_5_accuracy"] * (source.num_classes >= MANY_CLASSES)


def higher_is_better(metric: str) -> bool:
    """Return whether a larger value of a metric is the better one: of all but the loss.

    Args:
        metric: <source>/<metric>.
    """
    return metric.rpartition("/")[2] != "loss"


def check_best_metric(metric: str, sources: Sequence[SourceConfig]) -> None:
    """Check that evaluations during the run have the metric.

    Args:
        metric: `train.best_metric`.
        sources: The run's sources.

    Raises:
        UserError: They do not.
    """
    known = [
        f"{source.name}/{name}" for source in sources for name in best_metrics(source) if source.eval_shards
    ]
    if metric not in known:
        raise UserError(
            f"train.best_metric is '{metric}', must be one of {', '.join(known) or 'no metric, without eval_shards'}"
        )
