"""Turn known data into shards: `python jobs/prepare_data.py manifest|folder|fashion_mnist|modelnet ...`."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields

import yaml
from jsonargparse import ArgumentParser

from perceiver_dist.command_line import run_job
from perceiver_dist.subcommands import parse_arguments, subcommand_parser
from pipelines.convert import convert_fashion_mnist, convert_folder, convert_manifest, convert_modelnet
from pipelines.source import SourceConfig

CONVERTERS: dict[str, Callable[..., SourceConfig]] = {
    "manifest": convert_manifest,
    "folder": convert_folder,
    "fashion_mnist": convert_fashion_mnist,
    "modelnet": convert_modelnet,
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
    source = CONVERTERS[parsed.kind](**parsed[parsed.kind].as_dict())
    print(source_block(source), end="")
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
