"""Measure: `python jobs/benchmark.py data [--config F] [--tasks 1,2,4] [--a.b value ...]`."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from perceiver_dist.command_line import parse_run, run_job, run_parser
from perceiver_dist.config import RunConfig
from perceiver_dist.errors import UserError

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "default.yaml"

BENCHMARKS = {"data": "samples read and decoded per second, by the number of read tasks"}


def build_parser() -> ArgumentParser:
    """Return the parser of `data`."""
    parser = run_parser("Measure how fast a run's samples are read and decoded, by the number of read tasks.")
    parser.add_argument("--tasks", type=list[int], default=[1, 2], help="numbers of read tasks to try")
    parser.add_argument(
        "--units",
        type=int,
        default=256,
        help="units to read each time; many more than data.units_per_task, since the last tasks run alone",
    )
    parser.add_argument("--repeats", type=int, default=3, help="times that each number is tried")
    parser.add_argument(
        "--one_cpu_nodes",
        action="store_true",
        help="try it on a cluster started here, with as many CPU-only nodes of one CPU as there are tasks",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: There is no such benchmark, or an option is not as it must be.
    """
    kind, *rest = arguments or [""]
    if kind not in BENCHMARKS:
        known = "; ".join(f"{name}: {meaning}" for name, meaning in BENCHMARKS.items())
        raise UserError(f"there is no benchmark '{kind}', choose from {known}")
    config, parsed = parse_run(build_parser(), rest, [str(DEFAULT_CONFIG)], RunConfig)
    if not parsed.tasks or min(*parsed.tasks, parsed.repeats) < 1 or parsed.units < 4:
        raise UserError("--tasks and --repeats must be at least 1, --units at least 4")
    from perceiver_dist.ingest import OneCpuNodes, measure_ingest

    nodes = OneCpuNodes() if parsed.one_cpu_nodes else None
    try:
        found = measure_ingest(
            config, parsed.tasks, parsed.units, parsed.repeats, nodes.set if nodes else None
        )
    finally:
        if nodes:
            nodes.close()
    table = Table("source", box=None, pad_edge=False)
    for column in ("nodes" if nodes else "tasks", "samples/s", "least", "most", "ratio"):
        table.add_column(column, justify="right")
    first = {ingest.source: ingest for ingest in reversed(found)}
    for ingest in found:
        figures = [
            ingest.median,
            min(ingest.samples_per_second),
            max(ingest.samples_per_second),
        ]
        ratio = ingest.median / first[ingest.source].median
        table.add_row(
            ingest.source, str(ingest.tasks), *(f"{figure:,.0f}" for figure in figures), f"{ratio:.2f}"
        )
    Console(highlight=False).print(table)
    return 0


if __name__ == "__main__":
    run_job(main)
