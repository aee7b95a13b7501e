"""Conversion job: `python jobs/convert_checkpoint.py from_transformers|to_transformers ...`."""

from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from perceiver_dist.config.command_line import run_job
from perceiver_dist.config.subcommands import parse_arguments, subcommand_parser
from perceiver_dist.export.transformers_folder import convert_from_transformers, convert_to_transformers

DIRECTIONS: dict[str, Callable[..., None]] = {
    "from_transformers": convert_from_transformers,
    "to_transformers": convert_to_transformers,
}


def build_parser() -> ArgumentParser:
    """Return the command line parser: one subcommand per direction, with the options of its function."""
    return subcommand_parser("Convert models from and to Hugging Face transformers.", "direction", DIRECTIONS)


def main(arguments: Sequence[str]) -> int:
    """Convert, and print the location of the result.

    Args:
        arguments: Command line without the program name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option or the model is invalid.
    """
    parsed = parse_arguments(build_parser(), arguments)
    options = parsed[parsed.direction]
    DIRECTIONS[parsed.direction](**options.as_dict())
    print(f"converted {options.folder} to {options.out}")
    return 0


if __name__ == "__main__":
    run_job(main)
