"""Reports on shards as tables for a terminal or a file."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from pipelines.inspection.lint import LintReport, group_by_reason
from pipelines.inspection.summary import LabelCounts, Spread, Summary

_EXAMPLES = 3
"""Samples shown of each reason."""
_GROUPS = 20
"""Reasons shown."""
_CLASSES = 20
"""Classes shown at most: half of them the most, half the least frequent ones."""
_BAR = 30
"""Characters of the longest bar."""


def lint_lines(report: LintReport) -> Iterable[Text]:
    """Write a report on every sample as lines: how many, and the first samples of each reason.

    Args:
        report: The report.

    Yields:
        Lines, too long ones among them.
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


def summary_tables(summary: Summary) -> Group:
    """Lay out what is in some shards.

    Args:
        summary: The counts.

    Returns:
        Something for `rich.console.Console.print`.
    """
    parts: list[RenderableType] = [_totals(summary), Text(), _presence(summary), Text(), *_labels(summary)]
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
    table.add_row("keys that stand twice", f"{summary.duplicated_keys:,}")
    for name, count in (
        ("samples refused", summary.refused),
        ("samples without media", summary.without_media),
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


def _labels(summary: Summary) -> Iterable[RenderableType]:
    labels = summary.labels
    whole = "all" if labels.samples == summary.samples else f"{labels.samples:,} of the"
    about = f"labels of {whole} {summary.samples:,} samples: {len(labels.classes):,} classes"
    if labels.unreadable:
        about += f", {labels.unreadable:,} labels are missing or wrong"
    if labels.without_class:
        about += f", {labels.without_class:,} samples have no class"
    yield Text(about)
    if labels.classes:
        yield _histogram(labels)


def _histogram(labels: LabelCounts) -> Table:
    table = _table("class", "samples", "share")
    table.add_column("")
    classes = list(labels.classes.items())
    most = max(labels.classes.values()) or 1
    if len(classes) > _CLASSES:
        by_frequency = sorted(classes, key=lambda of: (-of[1], of[0]))
        rows = [by_frequency[: _CLASSES // 2], by_frequency[-_CLASSES // 2 :]]
    else:
        rows = [classes]
    for part, shown in enumerate(rows):
        if part:
            table.add_row("...")
        for label, count in shown:
            table.add_row(
                str(label), f"{count:,}", f"{count / labels.samples:.1%}", "█" * round(_BAR * count / most)
            )
    return table


def _measures(summary: Summary) -> Table:
    table = _table(f"headers of {summary.headers:,} samples", "samples", "least", "median", "most")
    for modality, spreads in summary.measures.items():
        for name, spread in spreads.items():
            table.add_row(f"{modality} {name}", f"{spread.samples:,}", *_values(spread))
    if summary.unreadable:
        table.add_row("cannot be read", f"{summary.unreadable:,}")
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
