"""What people read: progress lines, result tables, figures and Markdown."""
