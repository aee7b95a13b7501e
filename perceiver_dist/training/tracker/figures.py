"""Figures of a run: learning curves, and per source a confusion matrix, or a table if there are too many classes."""

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.display.run_figures import (
    MAX_DRAWN_CLASSES,
    confusion_matrix_figure,
    learning_curves_figure,
)
from perceiver_dist.metrics.confusion import Confusion
from perceiver_dist.metrics.metric_totals import Scores
from perceiver_dist.tracking.mlflow_run import MlflowRun
from perceiver_dist.training.tracker.logged_metrics import LoggedMetrics
from pipelines.shards.source import SourceConfig
from pipelines.storage.files import copy_file

_CURVES = {
    "step", "train_loss", "loss", "accuracy", "mean_average_precision", "learning_rate", "gradient_norm",
    "samples_per_second", "data_wait_fraction",
}  # fmt: skip
"""Last parts of the flat names that are drawn as learning curves. Counters would not be curves, and each metric of a
modality subset has one point."""

_MAX_CONFUSIONS = 1000
"""Rows of a table of confusions, the most frequent: more than anybody reads, and 50 KB."""


def keep_figures(
    sources: Sequence[SourceConfig],
    scores: Mapping[str, Scores],
    history: Sequence[LoggedMetrics],
    folder: RunFolder,
    log: MlflowRun,
) -> None:
    """Draw the figures of an evaluation and write the tables, in the run's folder and in MLflow.

    Args:
        sources: Sources of the run.
        scores: Source name -> scores of the evaluation.
        history: All logged metrics of the run.
        folder: The run's folder.
        log: The MLflow run.

    Raises:
        OSError: The folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for path in draw_figures(sources, scores, history, Path(scratch)):
            log.artifact(path)
            copy_file(str(path), folder.file(path.name), retry_seconds=0)


def draw_figures(
    sources: Sequence[SourceConfig],
    scores: Mapping[str, Scores],
    history: Sequence[LoggedMetrics],
    folder: Path,
) -> list[Path]:
    """Draw the figures of an evaluation, write the tables, and return their files.

    Args:
        sources: Sources of the run.
        scores: Source name -> scores of the evaluation.
        history: All logged metrics of the run.
        folder: Where to write the files.
    """
    files = []
    for source in sources:
        confusion = scores[source.name].confusion if source.name in scores else None
        if confusion is None:
            continue
        if confusion.classes <= MAX_DRAWN_CLASSES:
            files.append(folder / f"confusion_{source.name}.png")
            confusion_matrix_figure(confusion.matrix, source.shown_classes, files[-1])
        else:
            files.append(folder / f"confusions_{source.name}.csv")
            _write_table(confusion, source.shown_classes, files[-1])
    files.append(folder / "learning_curves.png")
    learning_curves_figure([_drawn(metrics) for metrics in history], files[-1])
    return files


def _write_table(confusion: Confusion, names: Sequence[str], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["true", "predicted", "samples"])
        for true, predicted, samples in confusion.confusions(_MAX_CONFUSIONS):
            table.writerow([names[true], names[predicted], samples])


def _drawn(metrics: LoggedMetrics) -> dict[str, float]:
    """Return the step and the values that are drawn as learning curves."""
    values = {"step": float(metrics.step), **metrics.flat()}
    return {name: value for name, value in values.items() if name.rpartition("/")[2] in _CURVES}
