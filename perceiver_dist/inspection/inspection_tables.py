"""Tables for a terminal or a file, of lint reports and summaries of shards."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from pipelines.inspection.lint import LintReport, group_by_reason
from pipelines.inspection.summary import LabelCounts, Spread, Summary

_EXAMPLES = 3
"""Max samples shown per reason; all of them are in the file that --out names."""
_GROUPS = 20
"""Max reasons shown, so that they fit on a screen or two."""
_CLASSES = 20
"""Max classes shown, to fit on a screen: half of them the most frequent, half the least frequent."""
_BAR = 30
"""Characters of the longest bar: leaves room for the other columns in a terminal of 80."""


def lint_lines(report: LintReport) -> Iterable[Text]:
    """Format a lint report as lines: the count and the first samples of each reason, then the totals.

    Args:
        report: The report.

    Yields:
        Lines, which may be longer than the terminal is wide.
    """
    groups = group_by_reason(report.bad)
    for group in groups[:_GROUPS]:
        yield Text(f"{len(group.samples):>8,}  {group.reason}", style="bold")
        for sample in group.samples[:_EXAMPLES]:
            reason = "" if sample.reason == group.reason else f": {sample.reason}"
            yield Text(f"{'':10}{sample.shard} {sample.key}{reason}")
    if len(groups) > _GROUPS:
        rest = sum(len(group.samples) for group in groups[_GROUPS:])
        yield Text(f"{rest:>8,}  for {len(groups) - _GROUPS} other reasons")
    for what, count, bad in (
        ("shards", report.shards, len(report.bad_shards)),
        ("samples", report.samples, len(report.bad_samples)),
    ):
        yield Text(f"{what}: {count:,}, of which {count - bad:,} are good and {bad:,} bad")


def summary_tables(summary: Summary, class_names: Sequence[str] = ()) -> Group:
    """Format a summary of shards.

    Args:
        summary: The summary.
        class_names: Names of the classes; empty if unknown.

    Returns:
        A renderable for `rich.console.Console.print`.
    """
    parts: list[RenderableType] = [
        _totals(summary),
        Text(),
        _presence(summary),
        Text(),
        *_labels(summary, class_names),
    ]
    if summary.measures:
        parts += [Text(), _measures(summary)]
    return Group(*parts)


def _totals(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("shards", f"{summary.shards:,}")
    table.add_row("samples", f"{summary.samples:,}")
    each = round(summary.bytes / summary.samples)
    table.add_row("size", f"{decimal(summary.bytes)}, {decimal(each)} per sample")
    table.add_row("duplicate keys", f"{summary.duplicated_keys:,}")
    for name, count in (
        ("samples rejected", summary.refused),
        ("samples without media", summary.without_media),
        ("files of no sample", summary.strays),
    ):
        if count:
            table.add_row(name, f"{count:,}")
    return table


def _presence(summary: Summary) -> Table:
    table = _table("modality or field", "samples", "missing from")
    for kind, counts in (("", summary.modalities), (".", summary.fields)):
        for name, count in counts.items():
            missing = summary.samples - count
            table.add_row(Text(kind + name), f"{count:,}", f"{missing:,}" if missing else "")
    return table


def _labels(summary: Summary, class_names: Sequence[str]) -> Iterable[RenderableType]:
    labels = summary.labels
    share = "all" if labels.samples == summary.samples else f"{labels.samples:,} of the"
    line = f"labels of {share} {summary.samples:,} samples: {len(labels.classes):,} classes"
    if labels.unreadable:
        line += f", {labels.unreadable:,} labels are missing or invalid"
    if labels.without_class:
        line += f", {labels.without_class:,} samples have no class"
    yield Text(line)
    if labels.classes:
        yield _histogram(labels, class_names)


def _histogram(labels: LabelCounts, class_names: Sequence[str]) -> Table:
    table = _table("class", "samples", "share")
    table.add_column("")
    classes = list(labels.classes.items())
    largest = max(labels.classes.values()) or 1
    if len(classes) > _CLASSES:
        by_frequency = sorted(classes, key=lambda of: (-of[1], of[0]))
        rows = [by_frequency[: _CLASSES // 2], by_frequency[-_CLASSES // 2 :]]
    else:
        rows = [classes]
    for half, shown in enumerate(rows):
        if half:
            table.add_row(f"... {len(classes) - _CLASSES:,} more (all: --json)")
        for label, count in shown:
            name = f"{label} {class_names[label]}" if label < len(class_names) else str(label)
            table.add_row(
                Text(name), f"{count:,}", f"{count / labels.samples:.1%}", "█" * round(_BAR * count / largest)
            )
    return table


def _measures(summary: Summary) -> Table:
    table = _table(f"headers of {summary.headers:,} samples", "samples", "min", "median", "max")
    for modality, spreads in summary.measures.items():
        for name, spread in spreads.items():
            table.add_row(f"{modality} {name}", f"{spread.samples:,}", *_values(spread))
    if summary.unreadable:
        table.add_row("unreadable", f"{summary.unreadable:,}")
    return table


def _values(spread: Spread) -> list[str]:
    return [
        f"{value:,.3f}".rstrip("0").removesuffix(".") for value in (spread.least, spread.median, spread.most)
    ]


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=None, pad_edge=False, header_style="bold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table
