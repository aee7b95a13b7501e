"""What a linear model makes of a run's sources: `python jobs/linear_baseline.py --config jobs/configs/default.yaml`."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from perceiver_dist.config.command_line import parse_run, run_job, run_parser
from perceiver_dist.config.run_config import RunConfig

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "default.yaml"


def build_parser() -> ArgumentParser:
    """Return the job's parser; its options are those of a training."""
    return run_parser("Fit a linear model to plain features of a run's sources, to compare a training with.")


def main(arguments: Sequence[str]) -> int:
    """Fit, and print a table.

    Args:
        arguments: The command line without the program's name; the options are those of a training.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option or the data is not as it must be.
    """
    config, _ = parse_run(build_parser(), arguments, [str(DEFAULT_CONFIG)], RunConfig)
    # Here and not above, so that --help need not wait for scikit-learn.
    from perceiver_dist.preflight.linear_baseline import linear_baselines

    console = Console(highlight=False)
    table = Table("source", box=None, pad_edge=False)
    for column in ("training samples", "held out", "features", "accuracy", "commonest class"):
        table.add_column(column, justify="right")
    for found in linear_baselines(config, lambda source: console.print(f"reading {source}", markup=False)):
        table.add_row(
            found.source,
            f"{found.trained:,}",
            f"{found.held_out:,}",
            f"{found.features:,}",
            f"{found.accuracy:.3f}",
            f"{found.majority:.3f}",
        )
    console.print(table)
    return 0


if __name__ == "__main__":
    run_job(main)
