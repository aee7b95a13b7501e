"""What `jobs/benchmark.py` measures, each beside what people would use instead; nothing else imports this."""

from pathlib import Path

JOBS = Path(__file__).parents[2] / "jobs"
DEFAULT_CONFIG = str(JOBS / "configs" / "default.yaml")
"""Of the default run, wherever the benchmark is started."""
