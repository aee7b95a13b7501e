"""Parallel coordinates figure: an axis per option and one for the score, and a line per trial."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from perceiver_dist.display.run_figures import write_figure
from perceiver_dist.search.report.axis_scale import AxisScale, scale_of
from perceiver_dist.search.report.formatting import ranked, short_names
from perceiver_dist.search.report.point_labels import spread
from perceiver_dist.search.report.search_figures import scored_trials
from perceiver_dist.search.study.search_record import SearchRecord, Trial

_COLOURS: Colormap = LinearSegmentedColormap.from_list(
    "scores", colormaps["viridis_r"]([0.12 + 0.88 * step / 255 for step in range(256)])
)
"""Viridis without its palest yellow, which is hard to see on white."""
_MAX_NUMBERS = 16
"""Max number of trials whose numbers are written: more would hide which number belongs to which line."""
_LABEL_GAP = 0.043
"""Height of a line of text as a share of an axis."""
_HALO = [withStroke(linewidth=2.5, foreground="white")]
"""Outline that keeps labels legible on top of lines."""


def parallel_coordinates_figure(record: SearchRecord, path: Path) -> None:
    """Draw a line per scored trial through its values to its score, as a PNG.

    Numbers that span more than a factor of 10 have a logarithmic axis, and categories are evenly spaced. The colour is
    the score. Lines of incomplete trials are pale, that of the best trial is thick, that of the baseline dashed.

    Args:
        record: Record of the search.
        path: The PNG to write; its folder exists.

    Raises:
        InternalError: No trial has a score.
    """
    trials = scored_trials(record)
    names = list(trials[0].values)
    scales = [scale_of([trial.values[name] for trial in trials]) for name in names]
    score_scale = AxisScale("linear", sorted({trial.score for trial in trials}))
    figure = Figure(figsize=(max(5.0, 2.4 + 1.45 * len(names)), 4.4), layout="constrained")
    axes = figure.add_subplot()
    for trial in trials:
        places = [scale.place(trial.values[name]) for name, scale in zip(names, scales, strict=True)]
        _draw_trial(axes, record, trial, [*places, score_scale.place(trial.score)])
    shown = short_names(names)
    titles = [shown[name] for name in names] + ["score"]
    for position, (title, scale) in enumerate(zip(titles, [*scales, score_scale], strict=True)):
        _draw_axis(axes, position, title, scale)
    axes.set(xlim=(-0.15, len(names) + 0.75), ylim=(-0.06, 1.06))
    axes.axis("off")
    _label_lines(axes, record, len(names), score_scale)
    write_figure(figure, path)


def _draw_trial(axes: Axes, record: SearchRecord, trial: Trial, places: list[float]) -> None:
    best, baseline = trial is record.best, trial is record.baseline
    completed = trial.state == "completed"
    axes.plot(
        range(len(places)),
        places,
        color=_COLOURS(places[-1]),
        linewidth=4 if best else 2 if baseline else 1.6,
        linestyle=(0, (4, 2)) if baseline else "-",
        alpha=1 if completed or baseline else 0.4,
        solid_capstyle="round",
        zorder=3 if best or baseline else 2 if completed else 1,
    )


def _draw_axis(axes: Axes, position: int, title: str, scale: AxisScale) -> None:
    axes.plot([position, position], [0, 1], color="#4a525c", linewidth=1, zorder=4)
    axes.text(position, 1.05, title, ha="center", va="bottom", fontsize=9, fontweight="bold")
    for place, label in scale.ticks():
        axes.plot(
            [position - 0.025, position + 0.025], [place, place], color="#4a525c", linewidth=1, zorder=4
        )
        axes.text(
            position - 0.05,
            place,
            label,
            ha="right",
            va="center",
            fontsize=8,
            zorder=5,
            path_effects=_HALO,
        )


def _label_lines(axes: Axes, record: SearchRecord, position: int, scale: AxisScale) -> None:
    """Write the numbers of the best trials and of the baseline beside the last axis."""
    scored = [trial for trial in ranked(record.trials) if trial.score is not None]
    named = sorted(scored, key=lambda trial: trial is not record.baseline)[:_MAX_NUMBERS]
    named.sort(key=lambda trial: (trial.score or 0.0, -trial.number))
    places = [scale.place(trial.score) for trial in named]
    roles = {id(record.baseline): "  baseline", id(record.best): "  best"}
    for trial, place, height in zip(named, places, spread(places, _LABEL_GAP, highest=1.0), strict=True):
        text = f"{trial.number}{roles.get(id(trial), '')}"
        axes.plot([position, position + 0.14], [place, height], color="#8b929c", linewidth=0.6, zorder=1)
        axes.text(position + 0.17, height, text, ha="left", va="center", fontsize=8)
