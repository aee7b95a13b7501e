"""Figures of a search: error against cost with its Pareto front, learning curves, and importances.

The best trial is blue, the baseline orange, and incomplete trials are hollow or pale.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from perceiver_dist.display.run_figures import write_figure
from perceiver_dist.errors import InternalError
from perceiver_dist.search.report.formatting import quantity, short_names
from perceiver_dist.search.report.pareto import CostName, pareto_front
from perceiver_dist.search.report.point_labels import label_points
from perceiver_dist.search.study.search_record import SearchRecord, Trial

BEST_COLOUR = "#1f5fbf"
BASELINE_COLOUR = "#d9730d"
_OTHER_COLOUR = "#8b929c"
_FRONT_COLOUR = "#4a525c"
_LOG_FROM = 3
"""Ratio of the largest to the smallest cost above which the axis is logarithmic. Its labels are 1, 2 and 5 times powers
of ten, at most a factor of 2.5 apart, so that a wider range always has one."""
_COST_LABELS: dict[CostName, str] = {
    "flops_per_sample": "FLOPs per sample, forward",
    "training_flops": "FLOPs of training",
    "parameters": "parameters",
}


def pareto_figure(record: SearchRecord, cost: CostName, path: Path) -> None:
    """Draw the error (1 - score) of every scored trial against its cost, as a PNG.

    Completed trials are filled. Others are hollow and at their newest score; their training FLOPs are those spent up to
    it. The line is the Pareto front of the completed trials.

    Args:
        record: Record of the search.
        cost: The cost on the horizontal axis.
        path: The PNG to write; its folder exists.

    Raises:
        InternalError: No trial has a score.
    """
    trials = scored_trials(record)
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    points = [(_cost_of_score(trial, cost), 1 - (trial.score or 0.0)) for trial in trials]
    _draw_front(axes, record, cost, points)
    for trial, point in zip(trials, points, strict=True):
        colour, completed = _colour(trial, record), trial.state == "completed"
        axes.plot(*point, "o", color=colour, markerfacecolor=colour if completed else "white", markersize=7)
    _set_cost_axis(axes, [value for value, _ in points])
    axes.set(xlabel=_COST_LABELS[cost], ylabel="error (1 - score)")
    axes.margins(y=0.12)
    _style_axes(axes)
    _add_legend(axes, record, trials)
    label_points(
        axes,
        [(*point, str(trial.number)) for trial, point in zip(trials, points, strict=True)],
        preferred=(1, 1),
    )
    write_figure(figure, path)


def learning_curves_figure(record: SearchRecord, path: Path) -> None:
    """Draw the score of every trial against the share of its training FLOPs spent, as a PNG.

    Args:
        record: Record of the search.
        path: The PNG to write; its folder exists.

    Raises:
        InternalError: No trial has a score.
    """
    trials = scored_trials(record)
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    ends = []
    for trial in trials:
        shares = [found.step / trial.cost.steps for found in trial.evaluations]
        scores = [found.score for found in trial.evaluations]
        colour, completed = _colour(trial, record), trial.state == "completed"
        emphasised = colour != _OTHER_COLOUR
        axes.plot(
            shares,
            scores,
            color=colour,
            linewidth=2.4 if emphasised else 1.2,
            marker="o",
            markersize=3,
            alpha=1 if emphasised or completed else 0.7,
            linestyle="--" if trial is record.baseline else "-",
            zorder=3 if emphasised else 2,
        )
        end = (shares[-1], scores[-1])
        face = colour if completed else "white"
        axes.plot(*end, "o", color=colour, markerfacecolor=face, markersize=6, zorder=4)
        ends.append((*end, str(trial.number)))
    axes.set(xlabel="share of the trial's training FLOPs spent", ylabel="score", xlim=(0, 1.06))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(y=0.08)
    _style_axes(axes)
    _add_legend(axes, record, trials)
    label_points(axes, ends, preferred=(1, 0))
    write_figure(figure, path)


def importance_figure(importance: Mapping[str, float], path: Path) -> None:
    """Draw the share of the variance of the scores that each option explains, as a PNG.

    Args:
        importance: Dotted name of an option -> share, from 0 to 1.
        path: The PNG to write; its folder exists.

    Raises:
        InternalError: `importance` is empty.
    """
    if not importance:
        raise InternalError(
            "importance: there are no shares to draw; at least four trials with scores are needed"
        )
    shown = sorted(importance.items(), key=lambda item: item[1])
    names = short_names(importance)
    figure = Figure(figsize=(7.2, 0.9 + 0.38 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([names[name] for name, _ in shown], [share for _, share in shown], color=BEST_COLOUR)
    axes.bar_label(bars, [f"{share:.0%}" for _, share in shown], padding=4, fontsize=9)
    axes.set(xlabel="share of the variance of the scores", xlim=(0, 1.12 * shown[-1][1]))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    _style_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    write_figure(figure, path)


def scored_trials(record: SearchRecord) -> list[Trial]:
    """Return the trials that have a score, the baseline and the best last, so that they are drawn on top.

    Args:
        record: Record of the search.

    Raises:
        InternalError: No trial has a score.
    """
    trials = [trial for trial in record.trials if trial.score is not None]
    if not trials:
        raise InternalError(
            f"figures of the search: none of the {len(record.trials)} trials has a score; "
            "wait for the first evaluation"
        )
    return sorted(trials, key=lambda trial: (trial is record.best, trial is record.baseline))


def _cost_of_score(trial: Trial, cost: CostName) -> float:
    """Return the cost of the newest score: of training FLOPs, those up to its evaluation."""
    share = trial.evaluations[-1].step / trial.cost.steps if cost == "training_flops" else 1.0
    return float(getattr(trial.cost, cost) * share)


def _colour(trial: Trial, record: SearchRecord) -> str:
    if trial is record.best:
        return BEST_COLOUR
    return BASELINE_COLOUR if trial is record.baseline else _OTHER_COLOUR


def _draw_front(
    axes: Axes, record: SearchRecord, cost: CostName, points: Sequence[tuple[float, float]]
) -> None:
    """Draw the lowest error at up to each cost: a step function that falls at each trial of the front."""
    front = pareto_front(record.trials, cost)
    if front:
        costs = [float(getattr(trial.cost, cost)) for trial in front]
        errors = [1 - (trial.score or 0.0) for trial in front]
        highest = max(value for value, _ in points)
        axes.step(
            [*costs, highest],
            [*errors, errors[-1]],
            where="post",
            color=_FRONT_COLOUR,
            linewidth=1.2,
            zorder=1,
        )


def _set_cost_axis(axes: Axes, costs: Sequence[float]) -> None:
    """Choose scale, limits and labels, with margins so that no point is at the edge, even if all costs are equal."""
    low, high = max(min(costs), 1.0), max(costs)
    if high > _LOG_FROM * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        margin = (high / low) ** 0.06
        axes.set_xlim(low / margin, high * margin)
    else:
        margin = max(0.06 * (high - low), 0.05 * high)
        axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))


def _style_axes(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(axes: Axes, record: SearchRecord, trials: Sequence[Trial]) -> None:
    """Explain colours and fills in a legend above the axes, where it covers no points."""
    dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 7}
    best, baseline = record.best, record.baseline
    entries = []
    if best is not None:
        name = f"best: trial {best.number}" + (", the baseline" if best is baseline else "")
        entries.append(Line2D([], [], color=BEST_COLOUR, label=name, **dot))
    if baseline in trials and baseline is not best:
        entries.append(Line2D([], [], color=BASELINE_COLOUR, label="baseline: trial 0", **dot))
    if any(trial.state == "completed" and trial not in (best, baseline) for trial in trials):
        entries.append(Line2D([], [], color=_OTHER_COLOUR, label="completed", **dot))
    if any(trial.state != "completed" for trial in trials):
        hollow = Line2D(
            [], [], color=_OTHER_COLOUR, markerfacecolor="white", label="not trained to its end", **dot
        )
        entries.append(hollow)
    axes.legend(
        handles=entries,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
