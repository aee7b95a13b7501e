"""Presentation of a search: report page, figures and terminal."""
