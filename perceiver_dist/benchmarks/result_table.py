"""Table of benchmark results, for the terminal and as a section of a Markdown page."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from perceiver_dist.display.markdown import markdown_table
from perceiver_dist.errors import UserError
from pipelines.storage.files import read_text, write_text


@dataclass(frozen=True)
class ResultTable:
    """Table of results.

    Attributes:
        columns: Column headings; all columns but the first are right-aligned.
        rows: Cells of each row, one text per column.
        notes: Lines below the table, such as what was left out.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def render(self) -> Table:
        """Return the table for the terminal."""
        first, *numbers = self.columns
        table = Table(first, box=None, pad_edge=False)
        for column in numbers:
            table.add_column(column, justify="right")
        for row in self.rows:
            table.add_row(*row)
        return table


def write_section(page: str, name: str, command: Sequence[str], figures: ResultTable) -> None:
    """Replace one section of a Markdown page by a table; the rest of the page stays as it is.

    Args:
        page: Markdown file with the lines `<!-- NAME -->` and `<!-- end of NAME -->`, between which is the section.
        name: Name of the section.
        command: Command line of the measurement, to reproduce it.
        figures: The results.

    Raises:
        UserError: The page does not exist, or lacks these lines.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = (read_text(page) or "").partition(begin)
    _, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise UserError(
            f"--page {page}: the file does not exist, or lacks the lines '{begin.strip()}' and '{end.strip()}'; add "
            "them where the table should be"
        )
    lines = [f"`{' '.join(command)}`: {machine()}", "", *markdown_table(figures.columns, figures.rows)]
    for note in figures.notes:
        lines += ["", note]
    write_text(page, f"{before}{begin}\n" + "\n".join(lines) + f"\n\n{end}{after}")


def machine() -> str:
    """Return what results depend on: CPU, accelerator, torch version, commit and date."""
    # Here, since processes that measure without torch would spend a second on its import.
    import torch

    parts = [f"{os.cpu_count()} CPU cores ({_processor()})"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    parts += [f"torch {torch.__version__}", f"commit {commit()}", datetime.now(UTC).date().isoformat()]
    return ", ".join(parts) + "."


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    return name[1] if name else platform.machine()


def commit() -> str:
    """Return the short name of the repository's commit, or "unknown"."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)  # noqa: S603
    return found.stdout.strip() or "unknown"
