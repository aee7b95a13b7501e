"""Markdown tables."""

from collections.abc import Iterable, Sequence


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> list[str]:
    """Return the lines of a table.

    Args:
        columns: Header of each column.
        rows: Rows of cells, as many as there are columns.
        numbers: Whether all columns but the first hold numbers, which are aligned right.
    """
    alignment = ["---", *["---:" if numbers else "---"] * (len(columns) - 1)]
    # A bar ends a cell, even inside code.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, alignment, *cells)]
