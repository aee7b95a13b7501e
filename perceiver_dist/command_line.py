"""From command line and YAML to a checked `RunConfig`; a wrong option ends in one line and exit status 2."""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from perceiver_dist.config import RunConfig
from perceiver_dist.errors import UserError

EXIT_USAGE = 2


class _OneLineParser(ArgumentParser):
    """A parser whose errors are `UserError`s."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn the parser's report into one line.

        Args:
            message: What argparse or jsonargparse found.
            ex: The exception behind it, if there is one.

        Raises:
            UserError: Always.
        """
        unknown = re.search(r"unrecognized arguments: -*([\w.]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], [action.dest for action in self._actions], n=3)
            hint = f"did you mean {' or '.join('--' + name for name in near)}?" if near else "see --help"
            raise UserError(f"option --{unknown[1]} does not exist; {hint}")
        raise UserError(_reason(ex) if ex else _one_line(message)) from ex


def run_parser(description: str) -> ArgumentParser:
    """Return the parser of a job that takes a `RunConfig`: `--config`, `--print_config`, and every option.

    Args:
        description: What the job does, for `--help`.
    """
    parser = _OneLineParser(description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(RunConfig, fail_untyped=True)
    return parser


def parse_run(
    parser: ArgumentParser, arguments: Sequence[str], default_config: str
) -> tuple[RunConfig, Namespace]:
    """Parse a job's arguments.

    Args:
        parser: A parser of `run_parser`, perhaps with options added.
        arguments: Command line without the program's name.
        default_config: YAML file taken when the arguments name none.

    Returns:
        The checked configuration, and everything that was parsed.

    Raises:
        UserError: An option is unknown, or a value is not allowed; one line.
    """
    named = any(argument.split("=")[0] == "--config" for argument in arguments)
    parsed = parser.parse_args([*([] if named else ["--config", default_config]), *arguments])
    names = [field.name for field in dataclasses.fields(RunConfig)]
    try:
        built = parser.instantiate(parsed)
        return RunConfig(**{name: built[name] for name in names}), parsed
    except (TypeError, ValueError) as error:
        raise UserError(_reason(error)) from error


def to_yaml(config: Any) -> str:
    """Return a configuration dataclass as YAML that `--config` reads back to an equal configuration."""
    plain = _plain(dataclasses.asdict(config))
    return str(yaml.safe_dump(plain, sort_keys=False, width=100, allow_unicode=True))


def run_job(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a job's main function on the command line and exit with its status.

    Args:
        main: Takes the arguments, returns the exit status; raises `UserError` for what the user can mend.

    Raises:
        SystemExit: Always; status 2 and one line on standard error for a `UserError`.
    """
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(EXIT_USAGE) from None
    raise SystemExit(status)


def _reason(error: BaseException) -> str:
    """Return our own message if one of ours is behind the parser's, else the parser's as one line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return _one_line(error)


def _one_line(message: object) -> str:
    return re.sub(r"\s*\n\s*", " ", str(message)).strip()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
