"""Command lines without a configuration: options taken from functions, a subcommand for each, or from a dataclass."""

from argparse import ArgumentError
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from perceiver_dist.errors import UserError


def subcommand_parser(
    description: str, name: str, functions: Mapping[str, Callable[..., Any]]
) -> ArgumentParser:
    """Return a parser with a subcommand for each function; `--help` is made from the docstrings.

    Args:
        description: What the job does, for `--help`.
        name: What a subcommand is called, as in "kind"; the parsed one stands under this name.
        functions: The functions by subcommand.
    """
    parser = ArgumentParser(description=description, exit_on_error=False)
    commands = parser.add_subcommands(dest=name, metavar=name.upper())
    for command, function in functions.items():
        meaning = (function.__doc__ or "").partition("\n")[0]
        options = ArgumentParser(description=meaning, exit_on_error=False)
        options.add_function_arguments(function)
        for option in signature(function).parameters.values():
            if option.annotation is bool:
                # Alone it means true.
                action = options._option_string_actions[f"--{option.name}"]
                action.nargs, action.const = "?", True
        commands.add_subcommand(command, options, help=meaning.rstrip("."))
    return parser


def options_parser(description: str, options: type, skip: Collection[str] = ()) -> ArgumentParser:
    """Return a parser with an option for each field of a dataclass; `--help` is made from its docstring.

    Args:
        description: What the job does, for `--help`.
        options: The dataclass.
        skip: Fields that get no option here.
    """
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_class_arguments(options, skip=set(skip), fail_untyped=True)
    return parser


def parse_arguments(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a command line with a parser that was built with `exit_on_error=False`.

    Args:
        parser: The parser.
        arguments: The command line without the program's name.

    Raises:
        UserError: An option is not as it must be; one line.
    """
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
