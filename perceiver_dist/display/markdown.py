"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> list[str]:
    """Return the lines of a table.

    Args:
        columns: What stands above.
        rows: As many texts in each.
        numbers: Whether all columns but the first are of numbers, which stand at the right.
    """
    alignment = ["---", *["---:" if numbers else "---"] * (len(columns) - 1)]
    # A bar would end a cell, in code too.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, alignment, *cells)]
