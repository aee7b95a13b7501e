"""Turn known data into shards: `python jobs/prepare_data.py manifest|folder|audioset|modelnet|mnist|fashion_mnist ...`.

Shards are written by Ray, on a cluster if RAY_ADDRESS names one. A conversion that was stopped goes on when the same
command is given again.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import Progress

from perceiver_dist.cluster.connect import start_ray
from perceiver_dist.config.command_line import run_job
from perceiver_dist.config.subcommands import parse_arguments, subcommand_parser
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
    """Return the job's parser: one subcommand for each converter, its options taken from the function."""
    return subcommand_parser("Turn known data into shards.", "kind", CONVERTERS)


def main(arguments: Sequence[str]) -> int:
    """Convert, then print the source as it is to stand in a run's config file.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option or the data is not as it must be.
    """
    parsed = parse_arguments(build_parser(), arguments)
    conversion = CONVERTERS[parsed.kind](**parsed[parsed.kind].as_dict())
    for remark in conversion.remarks:
        print(remark, file=sys.stderr)
    start_ray(1)
    # Beside the source, which may be sent to a file.
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("shards", total=None)
        write_conversion(conversion, lambda done, of: progress.update(task, completed=done, total=of))
    print(source_block(conversion.source), end="")
    return 0


def source_block(source: SourceConfig) -> str:
    """Return a source as the YAML that goes into a config file, without what is as it is by default.

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
