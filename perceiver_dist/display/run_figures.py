"""Pictures of a run for people who read the run folder or MLflow: the confusion matrix and the learning curves.

Figures are made without pyplot, so nothing is shared between threads and no display is looked for. A picture is
written beside its place and renamed, so that whoever looks at the folder never finds half a file.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from perceiver_dist.errors import InternalError

MAX_DRAWN_CLASSES = 100
"""Up to so many classes a confusion matrix is worth drawing; a picture of a thousand takes gigabytes."""
_DOTS_PER_INCH = 150
_DARK_CELL = 0.55
"""Share above which a cell of the matrix is dark enough to need white digits."""
_SMOOTHED_FROM = 40
"""Points from which a curve is drawn as a running mean, with the values themselves pale behind it."""


def confusion_matrix_figure(counts: np.ndarray[Any, Any], class_names: Sequence[str], path: Path) -> None:
    """Draw how often each class was taken for each other, as a PNG.

    Colour is the share of the true class (a row adds up to 1), so that rare classes read like common ones; the
    digits are the counts. Legible up to 30 classes.

    Args:
        counts: (classes, classes) integers; row the true class, column the predicted one.
        class_names: One name per class, in the order of the rows.
        path: The PNG to write; its folder exists.

    Raises:
        InternalError: `counts` is not square, or has another number of rows than there are names.
    """
    classes = len(class_names)
    if counts.shape != (classes, classes):
        raise InternalError(
            f"confusion matrix: counts have shape {counts.shape}, {classes} class names need "
            f"({classes}, {classes}); give one name per class"
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.42 * classes
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _name_the_classes(axes, class_names)
    for row, column in zip(*np.nonzero(counts), strict=True):
        shade = "white" if shares[row, column] > _DARK_CELL else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=7)
    accuracy = np.trace(counts) / max(int(counts.sum()), 1)
    axes.set_title(f"{int(counts.sum()):,} samples, accuracy {accuracy:.1%}", fontsize=10)
    write_figure(figure, path)


def is_worth_drawing(counts: np.ndarray[Any, Any] | None) -> TypeGuard[np.ndarray[Any, Any]]:
    """Return whether there is a confusion matrix, and it is not too large for a picture.

    Args:
        counts: (classes, classes) integers; None where a task has none.
    """
    return counts is not None and len(counts) <= MAX_DRAWN_CLASSES


def learning_curves_figure(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw every metric over the steps, as a PNG: one panel per metric, one line per source.

    Args:
        history: One mapping per logged step: `step` (optimizer steps done) and any number of
            `<source>/<metric>` or `<metric>` with their values. Names may differ from step to step.
        path: The PNG to write; its folder exists.

    Raises:
        InternalError: No entry of `history` holds a metric.
    """
    curves = _curves(history)
    if not curves:
        raise InternalError(
            f"learning curves: none of the {len(history)} entries of the history holds a metric; "
            "log at least one step before drawing"
        )
    panels: dict[str, list[str]] = {}
    for name in sorted(curves):
        panels.setdefault(name.rpartition("/")[2], []).append(name)
    figure = Figure(figsize=(4.8 * min(len(panels), 3), 3.2 * -(-len(panels) // 3)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // 3), min(len(panels), 3), squeeze=False)
    for axes, (metric, names) in zip(grid.flat, panels.items(), strict=False):
        for name in names:
            _draw_curve(axes, name.rpartition("/")[0], *curves[name])
        axes.set(title=metric, xlabel="step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    write_figure(figure, path)


def _name_the_classes(axes: Axes, class_names: Sequence[str]) -> None:
    places = range(len(class_names))
    axes.set_xticks(places, class_names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(places, class_names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(np.arange(len(class_names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(class_names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of every metric, by its full name."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name != "step":
                steps, values = curves.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(value)
    return curves


def _draw_curve(axes: Axes, source: str, steps: Sequence[float], values: Sequence[float]) -> None:
    if len(values) < _SMOOTHED_FROM:
        axes.plot(steps, values, label=source, linewidth=1.6, marker="o", markersize=3)
        return
    window = len(values) // 20
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    [line] = axes.plot(steps[window // 2 :][: len(means)], means, label=source, linewidth=1.6)
    axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8, zorder=1)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all.

    Args:
        figure: What to write.
        path: The PNG; its folder exists.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    FigureCanvasAgg(figure)
    figure.savefig(beside, format="png", dpi=_DOTS_PER_INCH)
    beside.replace(path)
