"""Display of runs: progress lines, tables, figures, Markdown."""
