"""Figures of a run: learning curves, and a confusion matrix per source."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from perceiver_dist.display.run_figures import (
    confusion_matrix_figure,
    is_worth_drawing,
    learning_curves_figure,
)
from perceiver_dist.metrics.metric_totals import Scores
from perceiver_dist.training.tracker.logged_metrics import LoggedMetrics
from pipelines.shards.source import SourceConfig

_CURVES = {
    "step", "train_loss", "loss", "accuracy", "mean_average_precision", "learning_rate", "gradient_norm",
    "samples_per_second", "data_wait_fraction",
}  # fmt: skip
"""Last parts of the flat names that are drawn as learning curves. Counters would not be curves, and each metric of a
modality subset has one point."""


def draw_figures(
    sources: Sequence[SourceConfig],
    scores: Mapping[str, Scores],
    history: Sequence[LoggedMetrics],
    folder: Path,
) -> list[Path]:
    """Draw the figures of an evaluation, and return their files.

    Args:
        sources: Sources of the run.
        scores: Source name -> scores of the evaluation.
        history: All logged metrics of the run.
        folder: Where to write the files.
    """
    files = []
    for source in sources:
        counts = scores[source.name].confusion if source.name in scores else None
        if is_worth_drawing(counts):
            files.append(folder / f"confusion_{source.name}.png")
            confusion_matrix_figure(counts, source.shown_classes, files[-1])
    files.append(folder / "learning_curves.png")
    learning_curves_figure([_drawn(metrics) for metrics in history], files[-1])
    return files


def _drawn(metrics: LoggedMetrics) -> dict[str, float]:
    """Return the step and the values that are drawn as learning curves."""
    values = {"step": float(metrics.step), **metrics.flat()}
    return {name: value for name, value in values.items() if name.rpartition("/")[2] in _CURVES}
