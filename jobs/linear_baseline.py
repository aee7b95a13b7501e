"""Fit a linear baseline for a run's sources: `python jobs/linear_baseline.py --config jobs/configs/default.yaml`."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from perceiver_dist.config.command_line import parse_run, run_job, run_parser
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.display.progress import LiveDisplay

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "default.yaml"


def build_parser() -> ArgumentParser:
    """Return the job's parser; its options are those of a training."""
    return run_parser("Fit a linear model to simple features of a run's sources, as a baseline for training.")


def main(arguments: Sequence[str]) -> int:
    """Fit the baselines, and print a table.

    Args:
        arguments: The command line without the program's name; the options are those of a training.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option is not valid, or the data cannot be used.
    """
    config, _ = parse_run(build_parser(), arguments, [str(DEFAULT_CONFIG)], RunConfig)
    # Imported here, so that --help does not wait for scikit-learn.
    from perceiver_dist.preflight.linear_baseline import linear_baselines

    console = Console(highlight=False)
    with LiveDisplay(console) as display:
        baselines = linear_baselines(
            config,
            lambda source: display.message(f"reading {source}"),
            lambda source, number, fits: display.show_line(f"{source}: fitting {number} of {fits}"),
        )
    table = Table("source", box=None, pad_edge=False)
    for column in ("training samples", "held-out samples", "features", "accuracy", "majority class"):
        table.add_column(column, justify="right")
    for baseline in baselines:
        table.add_row(
            baseline.source,
            f"{baseline.trained:,}",
            f"{baseline.held_out:,}",
            f"{baseline.features:,}",
            f"{baseline.accuracy:.3f}",
            f"{baseline.majority:.3f}",
        )
    console.print(table)
    return 0


if __name__ == "__main__":
    run_job(main)
