"""Exchange models with `transformers`: `python jobs/convert_checkpoint.py from_transformers|to_transformers ...`."""

from argparse import ArgumentError
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from perceiver_dist.command_line import run_job
from perceiver_dist.errors import UserError
from perceiver_dist.transformers_files import convert_from_transformers, convert_to_transformers

DIRECTIONS: dict[str, Callable[..., None]] = {
    "from_transformers": convert_from_transformers,
    "to_transformers": convert_to_transformers,
}


def build_parser() -> ArgumentParser:
    """Return the job's parser: one subcommand for each direction, its options taken from the function."""
    parser = ArgumentParser(description="Exchange models with the library transformers.", exit_on_error=False)
    commands = parser.add_subcommands(dest="direction", metavar="DIRECTION")
    for direction, convert in DIRECTIONS.items():
        options = ArgumentParser(description=(convert.__doc__ or "").partition("\n")[0], exit_on_error=False)
        options.add_function_arguments(convert)
        commands.add_subcommand(direction, options)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Convert, then say where the result is.

    Args:
        arguments: The command line without the program's name.

    Returns:
        Exit status: 0.

    Raises:
        UserError: An option or the model is not as it must be.
    """
    try:
        parsed = build_parser().parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    options = parsed[parsed.direction]
    DIRECTIONS[parsed.direction](**options.as_dict())
    print(f"converted {options.folder} to {options.out}")
    return 0


if __name__ == "__main__":
    run_job(main)
