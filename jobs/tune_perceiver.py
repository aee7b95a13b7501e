"""Hyperparameter search for the best Perceiver: `python jobs/tune_perceiver.py [--config F] [--a.b value ...]`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from perceiver_dist.cluster.worker_template import start_template
from perceiver_dist.config.command_line import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    parse_run,
    run_job,
    run_parser,
)
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.standard_output import lasting_output
from perceiver_dist.training.worker_imports import TRAINING

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIGS = [str(CONFIGS / "default.yaml"), str(CONFIGS / "search.yaml")]

EXIT_STATUS = {"interrupted": EXIT_INTERRUPTED, "terminated": EXIT_TERMINATED}
"""Exit status of a search that has not ended."""

LOG_WIDTH = 160
"""Columns of the result table in a log; rich's default of 80 is too narrow for the values of a trial."""


def build_parser() -> ArgumentParser:
    """Return the parser of the job."""
    parser = run_parser(
        "Hyperparameter search: find the best Perceiver for given data and a given budget.", SearchRunConfig
    )
    parser.add_argument(
        "--iso_flops",
        action="store_true",
        help="give every trial the same training FLOPs; short for --search.iso_flops true",
    )
    parser.add_argument(
        "--promote",
        metavar="NAME@ALIAS",
        help="register the best trial's model in the MLflow model registry",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="start nothing; print the candidates and their costs as JSON",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run or resume a search, or print its candidates with --dry_run.

    Args:
        arguments: Command line without the program's name.

    Returns:
        Exit status: 0 if the search has a best trial, 1 if no trial was completed, 130 if it was interrupted (Ctrl-C),
        143 if it was terminated (SIGTERM).
    """
    config, parsed = parse_run(build_parser(), arguments, DEFAULT_CONFIGS, SearchRunConfig)
    if parsed.iso_flops:
        config = replace(config, search=replace(config.search, iso_flops=True))
    if parsed.dry_run:
        # Imported here, since Ray and torch make --help slow.
        from perceiver_dist.search.search_preview import preview

        print(json.dumps(preview(config), indent=1))
        return 0
    # Before the driver is imported, which takes seconds, in which the template imports what trials need.
    start_template(TRAINING)
    from perceiver_dist.cluster.termination import leave_if_ray_has_ended
    from perceiver_dist.search.search_driver import run_search

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    with lasting_output():
        outcome = run_search(config, console, parsed.promote)
        status = EXIT_STATUS.get(outcome.interrupted, 0 if outcome.record.best else 1)
        leave_if_ray_has_ended(status)
    return status


if __name__ == "__main__":
    run_job(main)
