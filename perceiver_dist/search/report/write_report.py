"""Report of a search: the finding in one sentence, figures as PNG files, and a self-contained HTML page."""

import os
from pathlib import Path

from perceiver_dist.search.report.formatting import quantity, ranked
from perceiver_dist.search.report.importance import importance
from perceiver_dist.search.report.parallel_coordinates import parallel_coordinates_figure
from perceiver_dist.search.report.pareto import CostName
from perceiver_dist.search.report.report_page import report_page
from perceiver_dist.search.report.search_figures import (
    importance_figure,
    learning_curves_figure,
    pareto_figure,
)
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial

_SAME_COST = 1.01
"""Ratio of the largest to the smallest cost up to which costs count as equal. Trials of equal FLOPs still differ by the
rounding to whole steps."""
_COSTS: dict[CostName, str] = {
    "flops_per_sample": "FLOPs per sample",
    "training_flops": "FLOPs of training",
    "parameters": "parameters",
}
_PARETO_CAPTION = (
    "What {cost} buy: lower and further left is better. The line is the least error that a completed trial reached "
    "for at most so much; hollow points were not trained to their end."
)
_CURVES_CAPTION = (
    "How the trials learned: a point is an evaluation. Compare trials at the same share of their training; a line "
    "that ends early was stopped, failed or is still running."
)
_COORDINATES_CAPTION = (
    "Which values score: follow a line from axis to axis to its score. The darker the better; the best is thick, the "
    "baseline dashed, and what was not trained to its end is pale."
)
_IMPORTANCE_CAPTION = (
    "Which options matter: the share of the differences between scores that each explains within the values tried, "
    "at the first evaluation that all scored trials have. A rough estimate where trials are few."
)


def write_report(record: SearchRecord, config: SearchConfig, best_yaml: str, folder: Path) -> list[Path]:
    """Write the figures and `report.html`, a page that needs no other file, no script and no network.

    Figures without content are skipped: all of them before the first score, those of a cost that is the same for all
    trials, and importances of fewer than four trials.

    Args:
        record: Record of the search.
        config: Options of the search.
        best_yaml: Configuration of the best trial as YAML; "" if there is none.
        folder: A local folder; created if missing.

    Returns:
        The files, with the page last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions = _draw_figures(record, folder)
    page = folder / "report.html"
    # Written to a temporary file and renamed, so that nobody reads half a page.
    temporary = page.with_name(f".{page.name}.{os.getpid()}")
    temporary.write_text(report_page(record, config, finding(record), captions, best_yaml), encoding="utf-8")
    temporary.replace(page)
    return [*captions, page]


def _draw_figures(record: SearchRecord, folder: Path) -> dict[Path, str]:
    """Draw the figures that have content; return their files, each with a sentence on how to read it."""
    scored = [trial for trial in record.trials if trial.score is not None]
    if not scored:
        return {}
    captions = {}
    for cost, words in _COSTS.items():
        if _varies(scored, cost):
            path = folder / f"pareto_{cost}.png"
            pareto_figure(record, cost, path)
            captions[path] = _PARETO_CAPTION.format(cost=words)
    curves, coordinates = folder / "learning_curves.png", folder / "parallel_coordinates.png"
    learning_curves_figure(record, curves)
    parallel_coordinates_figure(record, coordinates)
    captions |= {curves: _CURVES_CAPTION, coordinates: _COORDINATES_CAPTION}
    shares = importance(record)
    if shares:
        importance_figure(shares, folder / "importance.png")
        captions[folder / "importance.png"] = _IMPORTANCE_CAPTION
    return captions


def _varies(trials: list[Trial], cost: CostName) -> bool:
    costs = [getattr(trial.cost, cost) for trial in trials]
    return max(costs) > _SAME_COST * min(costs)


def finding(record: SearchRecord) -> str:
    """Summarize the result of a search in one sentence.

    Args:
        record: Record of the search.

    Returns:
        The best trial, and whether it beats the baseline, by how much and at which FLOPs; or why that is unknown.
    """
    best, baseline = record.best, record.baseline
    so_far = "So far " if any(trial.state == "running" for trial in record.trials) else ""
    if best is None or best.score is None:
        return _nothing_completed(record)
    if baseline is None:
        return (
            f"{so_far}{best.name} is best: {_score_and_flops(best)}; there is no baseline to compare it with."
        )
    if baseline.state != "completed" or baseline.score is None:
        return (
            f"{so_far}{best.name} is best: {_score_and_flops(best)}; the baseline ({_how_it_stands(baseline)}) was "
            "not trained to its end, so there is nothing to compare it with."
        )
    if best is baseline:
        nothing = "So far nothing" if so_far else "Nothing"
        return f"{nothing} beats the baseline: {_score_and_flops(best)}; {_runner_up(record)}."
    gain = best.score - baseline.score
    verdict = f"beats the baseline by {gain:.4f}" if gain else "equals the baseline at lower cost"
    return f"{so_far}{best.name} {verdict}: {_score_and_flops(best)}, against {_score_and_flops(baseline)}."


def _nothing_completed(record: SearchRecord) -> str:
    leader = next((trial for trial in ranked(record.trials) if trial.score is not None), None)
    if leader is None:
        return "No trial has been trained to its end, and none has a score yet."
    return (
        f"No trial has been trained to its end yet; the highest score so far is {leader.score:.4f}, of {leader.name} "
        f"at evaluation {leader.evaluations[-1].number}."
    )


def _runner_up(record: SearchRecord) -> str:
    others = [trial for trial in ranked(record.completed) if trial is not record.baseline]
    if not others:
        return "no other trial was trained to its end"
    return f"next is {others[0].name} with {_score_and_flops(others[0])}"


def _score_and_flops(trial: Trial) -> str:
    return (
        f"score {trial.score:.4f} at {quantity(trial.cost.flops_per_sample, 'FLOPs')} per sample and "
        f"{quantity(trial.cost.training_flops, 'FLOPs')} of training"
    )


def _how_it_stands(trial: Trial) -> str:
    if trial.score is None:
        return trial.state
    return f"{trial.state}, score {trial.score:.4f} at evaluation {trial.evaluations[-1].number}"
