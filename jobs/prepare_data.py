"""Convert data sets to shards: `python jobs/prepare_data.py manifest|folder|audioset|modelnet|mnist|fashion_mnist ...`.

Ray writes the shards, on a cluster if RAY_ADDRESS is set. To resume a conversion that was stopped, run the same command
again.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import partial

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import Progress

from perceiver_dist.cluster.connect import start_ray
from perceiver_dist.config.command_line import run_job
from perceiver_dist.config.subcommands import parse_arguments, subcommand_parser
from perceiver_dist.standard_output import lasting_output
from pipelines.convert import (
    Conversion,
    convert_audioset,
    convert_fashion_mnist,
    convert_folder,
    convert_manifest,
    convert_mnist,
    convert_modelnet,
    write_conversion,
)
from pipelines.shards.source import SourceConfig

CONVERTERS: dict[str, Callable[..., Conversion]] = {
    "manifest": convert_manifest,
    "folder": convert_folder,
    "audioset": convert_audioset,
    "modelnet": convert_modelnet,
    "mnist": convert_mnist,
    "fashion_mnist": convert_fashion_mnist,
}


def build_parser() -> ArgumentParser:
    """Return the parser of the job: a subcommand per converter, with the options of its function."""
    return subcommand_parser("Convert data sets to shards.", "kind", CONVERTERS)


def main(arguments: Sequence[str]) -> int:
    """Convert a data set, and print the source as YAML for the configuration of a run.

    Everything else is printed to standard error, so that the YAML can be redirected to a file.

    Args:
        arguments: The command line without the program name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option or the data is invalid.
    """
    parsed = parse_arguments(build_parser(), arguments)
    conversion = CONVERTERS[parsed.kind](**parsed[parsed.kind].as_dict())
    for remark in conversion.remarks:
        print(remark, file=sys.stderr)
    console = Console(stderr=True, highlight=False)
    with lasting_output(), Progress(console=console, disable=not sys.stderr.isatty()) as progress:
        start_ray(1, partial(console.print, markup=False, soft_wrap=True))
        task = progress.add_task("shards", total=None)

        def show_progress(done: int, total: int) -> None:
            # The first call has the number of shards that existed before this command.
            if progress.tasks[task].total is None:
                console.print(counts_line(conversion, existing=done), markup=False, soft_wrap=True)
            progress.update(task, completed=done, total=total)

        write_conversion(conversion, show_progress)
    print(source_block(conversion.source), end="")
    return 0


def counts_line(conversion: Conversion, existing: int) -> str:
    """Return one line with the numbers of samples, classes and shards of a conversion.

    Args:
        conversion: The conversion.
        existing: Number of shards that existed already.
    """
    train, held_out = (conversion.count_samples(split) for split in ("train", "eval"))
    shards = len(conversion.parts)
    return (
        f"{train:,} training and {held_out:,} held-out samples, {conversion.source.num_classes:,} classes, "
        f"{shards:,} {'shard' if shards == 1 else 'shards'}, of which {existing:,} existed already"
    )


def source_block(source: SourceConfig) -> str:
    """Return a source as YAML for a configuration, without the options that have their default.

    Args:
        source: The source.
    """
    block = {
        field.name: getattr(source, field.name)
        for field in fields(source)
        if getattr(source, field.name) != field.default
        and (field.default_factory is MISSING or getattr(source, field.name) != field.default_factory())
    }
    return yaml.safe_dump({"sources": [block]}, sort_keys=False, allow_unicode=True, width=100)


if __name__ == "__main__":
    run_job(main)
