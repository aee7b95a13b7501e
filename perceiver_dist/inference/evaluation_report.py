"""Evaluation report: report.json for programs, report.md for people, one confusion matrix per source.

With many classes the page shows those that do worst, and there is no matrix; nothing grows faster than the number of
classes.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

from perceiver_dist.display.markdown import markdown_table
from perceiver_dist.display.progress import metric_rows, metric_text
from perceiver_dist.display.run_figures import MAX_DRAWN_CLASSES, confusion_matrix_figure
from perceiver_dist.inference.attention_report import draw_attention
from perceiver_dist.inference.model_evaluation import ModelEvaluation, SourceEvaluation
from perceiver_dist.metrics.undefined import why_undefined
from perceiver_dist.strict_json import to_json
from pipelines.storage.files import copy_file, join

JSON = "report.json"
PAGE = "report.md"
_MAX_BAD_SAMPLES = 100
"""Max number of bad samples listed in report.json, which keeps the file readable; all of them are counted."""
_MAX_CONFUSIONS = 1000
"""Max number of confused pairs of classes in report.json, the most frequent; so up to 32 classes it has all."""
_SHOWN_CLASSES = 100
"""Max rows of a class table on the page, as many as a reader scrolls through."""
_SHOWN_CONFUSIONS = 20
"""Rows of the page's table of confused pairs: those that are worth looking into."""
_SCORE_OF_CLASS = {"softmax": "f1", "multilabel": "average_precision"}
"""The value in the class table by which classes are compared."""


def write_report(evaluation: ModelEvaluation, attention: int = 0) -> list[str]:
    """Write the report into its folder; each file is written atomically.

    Args:
        evaluation: The evaluation.
        attention: Number of samples per source for which an attention figure is drawn.

    Returns:
        Paths or URIs of the files.
    """
    # Written locally first, since the output folder may be a URI.
    with tempfile.TemporaryDirectory() as scratch:
        figures = [_draw_confusion(found, Path(scratch)) for found in evaluation.sources]
        drawn = [figure for figure in figures if figure is not None]
        for found in evaluation.sources:
            drawn += draw_attention(evaluation.model, found.source, found.index, attention, Path(scratch))
        (Path(scratch) / JSON).write_text(to_json(report(evaluation), indent=1) + "\n", encoding="utf-8")
        (Path(scratch) / PAGE).write_text(report_page(evaluation), encoding="utf-8")
        files = [JSON, PAGE, *(figure.name for figure in drawn)]
        for name in files:
            copy_file(str(Path(scratch) / name), join(evaluation.out, name))
    return [join(evaluation.out, name) for name in files]


def report(evaluation: ModelEvaluation) -> dict[str, Any]:
    """Return the content of report.json. Values that are undefined are NaN here and null in the file.

    Args:
        evaluation: The evaluation.
    """
    stored = evaluation.model.stored
    return {
        "model": stored.place,
        "steps": stored.steps,
        "training_run_id": stored.mlflow_run_id,
        "device": evaluation.device,
        "precision": stored.config.train.precision,
        "batch": evaluation.batch,
        "views": evaluation.views,
        "metrics": evaluation.metrics,
        "sources": {found.source.name: _source(found) for found in evaluation.sources},
    }


def _source(found: SourceEvaluation) -> dict[str, Any]:
    confusion, names = found.scores.confusion, found.source.shown_classes
    return {
        "shards": found.source.eval_shards,
        "task": found.source.task,
        "modalities": found.source.modalities,
        "samples": found.samples,
        "bad_samples": len(found.bad),
        "first_bad_samples": [bad._asdict() for bad in found.bad[:_MAX_BAD_SAMPLES]],
        "seconds": round(found.seconds, 3),
        "classes": [
            {"class": name, **dict(zip(found.by_class, values, strict=True))}
            for name, *values in zip(names, *found.by_class.values(), strict=True)
        ],
        "confusions": None
        if confusion is None
        else [
            {"true": names[true], "predicted": names[predicted], "samples": samples}
            for true, predicted, samples in confusion.confusions(_MAX_CONFUSIONS)
        ],
    }


def report_page(evaluation: ModelEvaluation) -> str:
    """Return the report as a Markdown page.

    Args:
        evaluation: The evaluation.
    """
    stored = evaluation.model.stored
    windows = (
        "the centre of each sample" if evaluation.views == 1 else f"{evaluation.views} windows of each sample"
    )
    trained = f" after {stored.steps:,} steps" if stored.steps else ""
    lines = [
        "# Evaluation",
        "",
        f"`{stored.place}`{trained}, in batches of {evaluation.batch} on {evaluation.device}, "
        f"{stored.config.train.precision}, {windows}.",
        "",
    ]
    rows = metric_rows(evaluation.metrics)
    columns = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    cells = [[name.strip(), *(_text(row.get(column)) for column in columns)] for name, row in rows.items()]
    lines += markdown_table(["source", *columns], cells)
    for found in evaluation.sources:
        lines += ["", f"## {found.source.name}", "", f"Shards: `{found.source.eval_shards}`.", ""]
        if found.bad:
            bad = found.bad[0]
            lines += [
                f"{len(found.bad):,} samples could not be used; the first: `{bad.key}` of `{bad.shard}`, {bad.reason}",
                "",
            ]
        if undefined := why_undefined(found.source.name, found.scores.metrics):
            lines += [f"Warning: {undefined}.", ""]
        lines += _classes(found)
        lines += _confusions(found)
    return "\n".join(lines) + "\n"


def _classes(found: SourceEvaluation) -> list[str]:
    """Return the table of the classes; of many, those with the lowest score, in this order."""
    scores = found.by_class[_SCORE_OF_CLASS[found.source.task]]
    shown, lines = list(range(len(scores))), []
    if len(scores) > _SHOWN_CLASSES:
        defined = [number for number in shown if not math.isnan(scores[number])]
        shown = sorted(defined, key=lambda number: scores[number])[:_SHOWN_CLASSES]
        lines = [
            f"The {len(shown):,} of {len(scores):,} classes with the lowest {_SCORE_OF_CLASS[found.source.task]}; "
            f"{JSON} has all of them.",
            "",
        ]
    without = sum(samples == 0 for samples in found.by_class["samples"])
    if without:
        lines = [f"{without:,} of {len(scores):,} classes have no sample here.", "", *lines]
    names = found.source.shown_classes
    rows = [
        [names[number], *(_text(column[number]) for column in found.by_class.values())] for number in shown
    ]
    return lines + markdown_table(["class", *found.by_class], rows)


def _confusions(found: SourceEvaluation) -> list[str]:
    """Return the table of the most frequent confusions, and the matrix if it can be read."""
    confusion, names = found.scores.confusion, found.source.shown_classes
    if confusion is None:
        return []
    rows = [
        [names[true], names[predicted], f"{samples:,}"]
        for true, predicted, samples in confusion.confusions(_SHOWN_CONFUSIONS)
    ]
    lines = (
        ["", "Most frequent confusions:", "", *markdown_table(["true", "predicted", "samples"], rows)]
        if rows
        else []
    )
    if confusion.classes <= MAX_DRAWN_CLASSES:
        lines += ["", f"![Confusion matrix]({_figure_name(found)})"]
    return lines


def _text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else metric_text(value)


def _figure_name(found: SourceEvaluation) -> str:
    return f"confusion_{found.source.name}.png"


def _draw_confusion(found: SourceEvaluation, folder: Path) -> Path | None:
    confusion = found.scores.confusion
    if confusion is None or confusion.classes > MAX_DRAWN_CLASSES:
        return None
    path = folder / _figure_name(found)
    confusion_matrix_figure(confusion.matrix, found.source.shown_classes, path)
    return path
