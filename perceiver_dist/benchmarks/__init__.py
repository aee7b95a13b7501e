"""Benchmarks of `jobs/benchmark.py`, which compare this project with the usual alternatives.

Nothing else in the library imports this package.
"""

from pathlib import Path

JOBS = Path(__file__).parents[2] / "jobs"
DEFAULT_CONFIG = str(JOBS / "configs" / "default.yaml")
"""Configuration of the default run; absolute, so that a benchmark can be started from any folder."""
SEARCH_CONFIG = str(JOBS / "configs" / "search.yaml")
"""Configuration of the default search."""
