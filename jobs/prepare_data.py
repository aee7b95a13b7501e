"""Turn known data into shards: `python jobs/prepare_data.py manifest|fashion_mnist|modelnet ...`."""

from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import asdict

import yaml
from jsonargparse import ArgumentParser

from perceiver_dist.command_line import run_job
from perceiver_dist.errors import UserError
from pipelines.convert import convert_fashion_mnist, convert_manifest, convert_modelnet
from pipelines.source import SourceConfig

CONVERTERS: dict[str, Callable[..., SourceConfig]] = {
    "manifest": convert_manifest,
    "fashion_mnist": convert_fashion_mnist,
    "modelnet": convert_modelnet,
}


def build_parser() -> ArgumentParser:
    """Return the job's parser: one subcommand for each converter, its options taken from the function."""
    parser = ArgumentParser(description="Turn known data into shards.", exit_on_error=False)
    commands = parser.add_subcommands(dest="kind", metavar="KIND")
    for kind, convert in CONVERTERS.items():
        options = ArgumentParser(description=(convert.__doc__ or "").partition("\n")[0], exit_on_error=False)
        options.add_function_arguments(convert)
        commands.add_subcommand(kind, options)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Convert, then print the source as it is to stand in a run's config file.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option or the data is not as it must be.
    """
    try:
        parsed = build_parser().parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    source = CONVERTERS[parsed.kind](**parsed[parsed.kind].as_dict())
    print(source_block(source), end="")
    return 0


def source_block(source: SourceConfig) -> str:
    """Return a source as the YAML that goes into a config file.

    Args:
        source: The source.
    """
    return yaml.safe_dump({"sources": [asdict(source)]}, sort_keys=False, allow_unicode=True, width=100)


if __name__ == "__main__":
    run_job(main)
