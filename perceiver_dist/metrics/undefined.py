"""Metrics of an evaluation that no sample defines, and why: nobody should have to guess what an absent value means."""

import math
from collections.abc import Mapping


def undefined_names(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics that are undefined, of all modalities together.

    Args:
        metrics: Metrics of a source, as in `Scores.metrics`.
    """
    return [name for name, value in metrics.items() if math.isnan(value) and not name.endswith("_only")]


def why_undefined(source: str, metrics: Mapping[str, float]) -> str:
    """Return one line that names the undefined metrics of a source and why they are; "" if all are defined.

    Args:
        source: Name of the source.
        metrics: Its metrics, as in `Scores.metrics`.
    """
    names = undefined_names(metrics)
    if not names:
        return ""
    samples = metrics["samples"]
    if not samples:
        reason = "no held-out sample can be used; check the held-out shards and their labels"
    elif metrics.get("classes_with_positives") == 0:
        reason = f"no class has a positive among the {samples:.0f} held-out samples; check their labels"
    elif metrics.get("classes_with_both") == 0:
        reason = f"no class has positives and negatives among the {samples:.0f} held-out samples"
    else:
        reason = "the model's outputs are not finite"
    return f"source '{source}': {', '.join(names)} cannot be computed: {reason}"
