"""HTML page of a search's report, rendered from `templates/report.html`."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from perceiver_dist.display.html_page import render_page
from perceiver_dist.display.progress import duration
from perceiver_dist.search.report.formatting import quantity, ranked, short_names, value_text
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial

_WIDE_FIGURES = {"parallel_coordinates.png"}
"""Figures that take a row of the page: they have an axis per option, and would be too small to read in half of one."""
_MEASURES = ("parameters", "FLOPs/sample", "training FLOPs", "memory/rank", "steps", "time")
"""Columns after the options; `_measures` returns their values."""


@dataclass(frozen=True)
class _TrialRow:
    """Row of the table of trials."""

    kind: str
    label: str
    state: str
    reason: str
    numbers: Sequence[str]


def report_page(
    record: SearchRecord, config: SearchConfig, finding: str, captions: Mapping[Path, str], best_yaml: str
) -> str:
    """Build the page.

    Args:
        record: Record of the search.
        config: Options of the search.
        finding: The result of the search in one sentence.
        captions: PNG of each figure, and a sentence on how to read it.
        best_yaml: Configuration of the best trial; "" if there is none.

    Returns:
        HTML that needs no other file.
    """
    names = short_names(record.trials[0].values if record.trials else [])
    return render_page(
        "search/report/templates/report.html",
        title=f"Search {config.name}",
        finding=finding,
        summary=_summary(record),
        option_names=names,
        measures=_MEASURES,
        rows=[_trial_row(trial, record, list(names)) for trial in ranked(record.trials)],
        figures=[_figure(path, caption) for path, caption in captions.items()],
        rejected=record.rejected,
        options={f"search.{field.name}": _lines(getattr(config, field.name)) for field in fields(config)},
        best_yaml=best_yaml,
    )


def _summary(record: SearchRecord) -> str:
    states = [trial.state for trial in record.trials]
    counts = [
        f"{states.count(state)} {state}"
        for state in ("completed", "stopped", "failed", "running")
        if state in states
    ]
    spent = sum(trial.training_flops for trial in record.trials)
    return f"{len(states)} trials ({', '.join(counts)}), {quantity(spent, 'FLOPs')} of training spent, " + (
        f"{duration(record.seconds)} in all."
    )


def _trial_row(trial: Trial, record: SearchRecord, names: list[str]) -> _TrialRow:
    role = "best" if trial is record.best else "baseline" if trial is record.baseline else ""
    score = "" if trial.score is None else f"{trial.score:.4f}"
    return _TrialRow(
        kind=role or ("" if trial.state == "completed" else "incomplete"),
        label=f"{trial.number} {role}".strip(),
        state=trial.state,
        reason=trial.reason,
        numbers=[score, *(value_text(trial.values[name]) for name in names), *_measures(trial)],
    )


def _measures(trial: Trial) -> list[str]:
    return [
        quantity(trial.cost.parameters),
        quantity(trial.cost.flops_per_sample),
        quantity(trial.training_flops),
        quantity(trial.cost.memory_per_rank, "B"),
        f"{trial.step:,} of {trial.cost.steps:,}",
        duration(trial.seconds),
    ]


def _figure(path: Path, caption: str) -> dict[str, Any]:
    return {
        "base64": base64.b64encode(path.read_bytes()).decode(),
        "caption": caption,
        "whole_row": path.name in _WIDE_FIGURES,
    }


def _lines(value: Any) -> list[str]:
    """Return the lines of an option's value: one per entry of a mapping, such as the space."""
    if isinstance(value, dict):
        return [f"{name}: {value_text(choices)}" for name, choices in value.items()]
    return [value_text(value)]
