"""Exchange models with `transformers`: `python jobs/convert_checkpoint.py from_transformers|to_transformers ...`."""

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
    """Return the job's parser: one subcommand for each direction, its options taken from the function."""
    return subcommand_parser("Exchange models with the library transformers.", "direction", DIRECTIONS)


def main(arguments: Sequence[str]) -> int:
    """Convert, then say where the result is.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option or the model is not as it must be.
    """
    parsed = parse_arguments(build_parser(), arguments)
    options = parsed[parsed.direction]
    DIRECTIONS[parsed.direction](**options.as_dict())
    print(f"converted {options.folder} to {options.out}")
    return 0


if __name__ == "__main__":
    run_job(main)
