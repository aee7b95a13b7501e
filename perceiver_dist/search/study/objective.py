"""Objective of a search: the single score by which trials are compared."""

import math

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.metrics.undefined import why_undefined
from perceiver_dist.training.tracker.logged_metrics import EvaluationMetrics

_METRIC_OF_TASK = {"softmax": "accuracy", "multilabel": "mean_average_precision"}
"""Both are between 0 and 1, and higher is better, so that their mean over sources is meaningful."""


def check_metric(metric: str, config: RunConfig) -> None:
    """Check that every trial will report the metric, at every evaluation.

    Args:
        metric: `search.metric`.
        config: Configuration of the training.

    Raises:
        UserError: Trials would end early by themselves, there is no such metric, or a source that it needs has no
            held-out shards.
    """
    known = {f"{source.name}/{_METRIC_OF_TASK[source.task]}": source for source in config.sources}
    if config.train.patience is not None:
        raise UserError(
            f"train.patience is {config.train.patience}; a search compares trials after the same steps and stops them "
            "itself (search.scheduler): set it to null"
        )
    if metric != "mean" and metric not in known:
        raise UserError(f"search.metric is '{metric}', must be mean or one of {', '.join(known)}")
    for name, source in known.items():
        if metric in ("mean", name) and not source.eval_shards:
            raise UserError(
                f"search.metric is {metric}, but source '{source.name}' has no eval_shards; a search compares trials "
                "on held-out shards: set its eval_shards, or name the metric of another source"
            )


def unscored_sources(evaluation: EvaluationMetrics, metric: str, config: RunConfig) -> list[str]:
    """Return one line for each source whose metric the score needs and is undefined.

    Args:
        evaluation: The evaluation.
        metric: `search.metric`.
        config: Configuration of the training.
    """
    return [
        why_undefined(source.name, evaluation.sources[source.name])
        for source in config.sources
        if metric in ("mean", f"{source.name}/{_METRIC_OF_TASK[source.task]}")
        and math.isnan(evaluation.sources[source.name][_METRIC_OF_TASK[source.task]])
    ]


def score_of(evaluation: EvaluationMetrics, metric: str, config: RunConfig) -> float:
    """Return the score of an evaluation: between 0 and 1, higher is better, NaN if that of a source is undefined.

    Args:
        evaluation: The evaluation.
        metric: `search.metric`.
        config: Configuration of the training.
    """
    metrics = evaluation.flat()
    if metric != "mean":
        return metrics[metric]
    values = [metrics[f"{source.name}/{_METRIC_OF_TASK[source.task]}"] for source in config.sources]
    return sum(values) / len(values)
