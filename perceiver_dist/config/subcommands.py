"""Command line parsers without a run configuration: a subcommand per function, or an option per dataclass field."""

from argparse import ArgumentError
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from perceiver_dist.errors import UserError


def subcommand_parser(
    description: str, name: str, functions: Mapping[str, Callable[..., Any]]
) -> ArgumentParser:
    """Return a parser with a subcommand for each function; `--help` is generated from the docstrings.

    Args:
        description: What the job does, for `--help`.
        name: Name of the choice, such as "kind"; the parsed result holds the subcommand under this name.
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
                # Without a value the option means true. argparse has no public way to find an action.
                action = options._option_string_actions[f"--{option.name}"]
                action.nargs, action.const = "?", True
        commands.add_subcommand(command, options, help=meaning.rstrip("."))
    return parser


def options_parser(description: str, options: type, skip: Collection[str] = ()) -> ArgumentParser:
    """Return a parser with an option for each field of a dataclass; `--help` is generated from its docstring.

    Args:
        description: What the job does, for `--help`.
        options: The dataclass.
        skip: Fields without an option.
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
        UserError: An option is unknown, or a value is not allowed.
    """
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
