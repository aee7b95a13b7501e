"""Train one Perceiver on several sources: `python jobs/train_multimodal.py [--config F] [--a.b value ...]`."""

import json
from collections.abc import Sequence
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
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.standard_output import lasting_output
from perceiver_dist.training.worker_imports import TRAINING

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "default.yaml"

EXIT_STATUS = {"completed": 0, "failed": 1, "interrupted": EXIT_INTERRUPTED, "preempted": EXIT_TERMINATED}
"""Exit status by outcome."""


def build_parser() -> ArgumentParser:
    """Return the job's parser."""
    parser = run_parser("Train one Perceiver on several sources and record it in MLflow.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print parameters, FLOPs, memory, and what fits on which GPU as JSON, without training",
    )
    parser.add_argument(
        "--first_step",
        action="store_true",
        help="print loss, gradients and attention of the new model on random samples as JSON, without training",
    )
    parser.add_argument(
        "--replay",
        metavar="SOURCE/UNIT",
        help="show the samples of a unit such as clips/1625, without training",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Train; or compute a training's cost with --dry_run or its start with --first_step, or show a unit with --replay.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0 if the run completed, 1 if training failed, 130 if it was interrupted (Ctrl-C), 143 if it was
        preempted (SIGTERM) and saved a checkpoint.
    """
    config, parsed = parse_run(build_parser(), arguments, [str(DEFAULT_CONFIG)], RunConfig)
    # The imports are in the branches, so that --help and --dry_run do not wait for Ray and DeepSpeed.
    if parsed.dry_run:
        from perceiver_dist.preflight.dry_run import dry_run

        print(json.dumps(dry_run(config), indent=1))
        return 0
    if parsed.first_step:
        from perceiver_dist.preflight.first_step import first_step

        print(json.dumps(first_step(config), indent=1))
        return 0
    console = Console(highlight=False)
    if parsed.replay:
        from perceiver_dist.training.replay import replay

        console.print(replay(config, parsed.replay))
        return 0
    # Before the driver is imported, which takes seconds, in which the template imports what workers need.
    start_template(TRAINING)
    from perceiver_dist.cluster.termination import (
        begin_anew,
        end_left_ray,
        hangs_before,
        leave_if_ray_has_ended,
    )
    from perceiver_dist.training.driver import run_training
    from perceiver_dist.training.hang_watch import HangError

    with lasting_output():
        end_left_ray()
        try:
            status = EXIT_STATUS[run_training(config, console, hangs=hangs_before())["exit"]]
        except HangError as error:
            console.print(f"{error}; starting again with a new Ray", markup=False, soft_wrap=True)
            begin_anew()
        leave_if_ray_has_ended(status)
    return status


if __name__ == "__main__":
    run_job(main)
