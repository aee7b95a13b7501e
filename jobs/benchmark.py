"""Measure: `python jobs/benchmark.py data|checkpoint|model ...`; `--help` after it says what can be chosen."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from perceiver_dist.command_line import parse_run, run_job, run_parser
from perceiver_dist.config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.subcommands import parse_arguments

_WIDTH_OF_FILES = 140
"""Columns where the table does not go to a terminal, which says how many it has."""

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "default.yaml"


def build_parser() -> ArgumentParser:
    """Return the parser that shows what there is to measure."""
    parser = ArgumentParser(description="Measure what this machine can do.")
    commands = parser.add_subcommands(dest="kind", metavar="KIND")
    commands.add_subcommand("data", data_parser())
    commands.add_subcommand("checkpoint", checkpoint_parser())
    commands.add_subcommand("model", model_parser())
    return parser


def data_parser() -> ArgumentParser:
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


def checkpoint_parser() -> ArgumentParser:
    """Return the parser of `checkpoint`."""
    parser = ArgumentParser(
        description="Measure how long training stands still for a checkpoint of 44 million parameters.",
        exit_on_error=False,
    )
    parser.add_argument("--repeats", type=int, default=5, help="saves of each kind")
    parser.add_argument("--folder", type=str, help="where to write; by default a folder that is deleted")
    return parser


def model_parser() -> ArgumentParser:
    """Return the parser of `model`."""
    parser = ArgumentParser(
        description="Measure the model's step beside that of other libraries, at the same size and precision.",
        exit_on_error=False,
    )
    parser.add_argument(
        "--setting", type=str, default="imagenet", help="imagenet, audioset_video, modelnet40 or small"
    )
    parser.add_argument("--batch", type=int, default=1, help="samples in a step")
    parser.add_argument(
        "--precision", type=Literal["fp32", "bf16"], default="fp32", help="fp32 or bf16 (autocast)"
    )
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contender")
    return parser


def measure_data(arguments: Sequence[str]) -> Table:
    """Measure reading and decoding.

    Args:
        arguments: The command line after `data`.

    Returns:
        Samples per second by source and number of tasks.

    Raises:
        UserError: An option is not as it must be.
    """
    config, parsed = parse_run(data_parser(), arguments, [str(DEFAULT_CONFIG)], RunConfig)
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
    table = _table("source", "nodes" if nodes else "tasks", "samples/s", "least", "most", "ratio")
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
    return table


def measure_checkpoint(arguments: Sequence[str]) -> Table:
    """Measure saving.

    Args:
        arguments: The command line after `checkpoint`.

    Returns:
        Seconds for which training stands still, by whether it waits until the checkpoint is stored.

    Raises:
        UserError: An option is not as it must be.
    """
    parsed = parse_arguments(checkpoint_parser(), arguments)
    if parsed.repeats < 1:
        raise UserError(f"--repeats is {parsed.repeats}, must be at least 1")
    from perceiver_dist.training.checkpoint_benchmark import measure_saves

    with tempfile.TemporaryDirectory() as scratch:
        saves = measure_saves(parsed.folder or scratch, parsed.repeats)
    table = _table("save", "stall s", "least", "most", "ratio", "stored after s", "bytes")
    whole = median(save.stall for save in saves if save.waited)
    for name, waited in (("waited for", True), ("beside training", False)):
        stalls = [save.stall for save in saves if save.waited == waited]
        figures = [median(stalls), min(stalls), max(stalls), median(stalls) / whole]
        stored = median(save.stored for save in saves if save.waited == waited)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures), f"{stored:.2f}", f"{saves[0].bytes:,}")
    return table


def measure_model(arguments: Sequence[str]) -> Table:
    """Measure forward passes and steps.

    Args:
        arguments: The command line after `model`.

    Returns:
        Seconds and memory by contender; ratios are to the first, `difference` is that of the logits.

    Raises:
        UserError: An option is not as it must be.
    """
    parsed = parse_arguments(model_parser(), arguments)
    from perceiver_dist.model_speed import CONTENDERS, SETTINGS, measure_speeds, middle

    if parsed.setting not in SETTINGS or min(parsed.batch, parsed.repeats) < 1:
        raise UserError(f"--setting must be one of {', '.join(SETTINGS)}, --batch and --repeats at least 1")
    found = measure_speeds(
        CONTENDERS, parsed.setting, parsed.batch, parsed.precision, parsed.device, parsed.repeats
    )
    table = _table(
        "contender",
        "parameters",
        "forward s",
        "step s",
        "least",
        "most",
        "ratio",
        "GiB",
        "ratio",
        "difference",
    )
    first = next(iter(found.values()))
    for contender, speeds in found.items():
        step, memory = middle(speeds, "step"), middle(speeds, "bytes")
        steps = [speed.step for speed in speeds]
        pairs = zip(speeds[0].logits, first[0].logits, strict=True)
        figures = [middle(speeds, "forward"), step, min(steps), max(steps)]
        table.add_row(
            contender,
            f"{speeds[0].parameters:,}",
            *(f"{figure:.3f}" for figure in figures),
            f"{step / middle(first, 'step'):.2f}",
            f"{memory / 2**30:.2f}",
            f"{memory / middle(first, 'bytes'):.2f}",
            f"{max(abs(one - other) for one, other in pairs):.1e}",
        )
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=None, pad_edge=False)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


BENCHMARKS: dict[str, tuple[str, Callable[[Sequence[str]], Table]]] = {
    "data": ("samples read and decoded per second, by the number of read tasks", measure_data),
    "checkpoint": ("seconds for which training stands still when it saves", measure_checkpoint),
    "model": ("seconds and memory of a step, beside other libraries", measure_model),
}


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
    if kind in ("-h", "--help"):
        build_parser().parse_args([kind])
    if kind not in BENCHMARKS:
        known = "; ".join(f"{name}: {meaning}" for name, (meaning, _) in BENCHMARKS.items())
        raise UserError(f"there is no benchmark '{kind}', choose from {known}")
    _, measure = BENCHMARKS[kind]
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    console.print(measure(rest))
    return 0


if __name__ == "__main__":
    run_job(main)
