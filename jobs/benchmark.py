"""Benchmarks against the usual alternatives: `python jobs/benchmark.py KIND ...`; `--help` lists the kinds."""

from collections.abc import Callable, Iterator, Sequence

from jsonargparse import ArgumentParser
from rich.console import Console

from perceiver_dist.benchmarks.checkpoint_stall import measure_checkpoint
from perceiver_dist.benchmarks.data.read_tasks import measure_read_tasks
from perceiver_dist.benchmarks.data.speed import measure_data
from perceiver_dist.benchmarks.dealing import measure_dealing
from perceiver_dist.benchmarks.kernel_speed import measure_kernels
from perceiver_dist.benchmarks.model_speed import measure_gpu, measure_model, measure_sweep
from perceiver_dist.benchmarks.plan_cost import measure_plan
from perceiver_dist.benchmarks.result_table import ResultTable, write_section
from perceiver_dist.benchmarks.shuffle_quality import measure_shuffle
from perceiver_dist.benchmarks.soak import measure_soak
from perceiver_dist.benchmarks.start_time import measure_start
from perceiver_dist.benchmarks.step_overhead import measure_overhead
from perceiver_dist.config.command_line import run_job
from perceiver_dist.config.subcommands import parse_arguments, subcommand_parser

_WIDTH_OF_FILES = 140
"""Columns of a table that is not written to a terminal: the widest one fits without wrapping."""

KINDS: dict[str, Callable[..., ResultTable | Iterator[tuple[str, ResultTable]]]] = {
    "data": measure_data,
    "model": measure_model,
    "gpu": measure_gpu,
    "sweep": measure_sweep,
    "kernels": measure_kernels,
    "overhead": measure_overhead,
    "start": measure_start,
    "plan": measure_plan,
    "shuffle": measure_shuffle,
    "read_tasks": measure_read_tasks,
    "dealing": measure_dealing,
    "checkpoint": measure_checkpoint,
    "soak": measure_soak,
}


def build_parser() -> ArgumentParser:
    """Return the job's parser, with a subcommand for each kind and the options of its function."""
    parser = subcommand_parser("Run a benchmark on this machine.", "kind", KINDS)
    parser.add_argument(
        "--page", type=str, help="Markdown page in which the section with this benchmark's table is replaced"
    )
    parser.add_argument(
        "--section",
        type=str,
        help="name of that section, by default the kind; not for gpu, which has several",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run a benchmark, print its table, and write the table into a page if one is named.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: The benchmark does not exist, or an option is invalid.
    """
    parsed = parse_arguments(build_parser(), arguments)
    found = KINDS[parsed.kind](**parsed[parsed.kind].as_dict())
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    typed = ["python jobs/benchmark.py", *arguments[list(arguments).index(parsed.kind) :]]
    # A benchmark of several sections yields each when it is measured, so that an interruption loses only the rest.
    tables = [(parsed.section or parsed.kind, found)] if isinstance(found, ResultTable) else found
    for section, figures in tables:
        console.print(figures.render())
        for line in figures.notes:
            console.print(line, soft_wrap=True)
        if parsed.page:
            write_section(parsed.page, section, typed, figures)
    return 0


if __name__ == "__main__":
    run_job(main)
