"""Figures of a run, for the run folder and MLflow: confusion matrix and learning curves.

Figures are drawn without pyplot, so threads share no state and no display is needed. Files are written atomically, so
that nobody who opens the folder finds half a file.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from perceiver_dist.errors import InternalError

MAX_DRAWN_CLASSES = 100
"""Maximum number of classes of a confusion matrix that is drawn. Names and digits are 63 pixels apart whatever their
number; the figure of 100 classes has 6,700 pixels per side, and one of a thousand would take gigabytes of memory."""
_DOTS_PER_INCH = 150
"""Sharp on screens."""
_DARK_CELL = 0.55
"""Share of a row above which the colour of a cell is so dark that its digits are drawn in white."""
_SMOOTHED_FROM = 40
"""Number of points from which a curve is drawn as a moving average, with the values pale behind it. The window is 1/20
of the points, so with fewer points it would hold a single value."""


def confusion_matrix_figure(counts: np.ndarray[Any, Any], class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as a PNG file.

    Cells are coloured by their share of the row, so that rare classes are as visible as common ones; the digits are
    counts. For at most `MAX_DRAWN_CLASSES`.

    Args:
        counts: (classes, classes) integers; rows are true classes, columns predicted ones.
        class_names: One name per class, in the order of the rows.
        path: PNG file to write; its folder must exist.

    Raises:
        InternalError: The shape of `counts` does not match the number of names.
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
    _label_classes(axes, class_names)
    for row, column in zip(*np.nonzero(counts), strict=True):
        shade = "white" if shares[row, column] > _DARK_CELL else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=7)
    accuracy = np.trace(counts) / max(int(counts.sum()), 1)
    axes.set_title(f"{int(counts.sum()):,} samples, accuracy {accuracy:.1%}", fontsize=10)
    write_figure(figure, path)


def learning_curves_figure(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw every metric over the steps as a PNG file: one panel per metric, one line per source.

    Args:
        history: One mapping per logged step: `step` (optimizer steps done) and any number of
            `<source>/<metric>` or `<metric>` with their values. Names may differ from step to step.
        path: PNG file to write; its folder must exist.

    Raises:
        InternalError: No entry of `history` has a metric.
    """
    curves = _curves(history)
    if not curves:
        raise InternalError(
            f"learning curves: none of the {len(history)} entries of the history has a metric; "
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


def _label_classes(axes: Axes, class_names: Sequence[str]) -> None:
    positions = range(len(class_names))
    axes.set_xticks(positions, class_names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(positions, class_names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    # Minor ticks lie between the cells, and their grid separates them.
    axes.set_xticks(np.arange(len(class_names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(class_names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, tuple[list[float], list[float]]]:
    """Return the steps and values of every metric by its full name."""
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
    """Write a figure to a PNG file atomically.

    Args:
        figure: The figure.
        path: PNG file to write; its folder must exist.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    FigureCanvasAgg(figure)
    figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)
    temporary.replace(path)
