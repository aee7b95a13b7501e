"""Command line and YAML parser of a `RunConfig`; a wrong option ends the job with one line and exit status 2."""

import dataclasses
import errno
import os
import re
import signal
import sys
import textwrap
from argparse import Action, ArgumentError, HelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from perceiver_dist.config.options import nearest_option, option_groups, value_types
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.standard_output import OutputError, checked_output
from perceiver_dist.termination_signals import handled_signals

EXIT_USAGE = 2
"""Exit status of a usage error, as argparse and most command line tools have it."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it: 128 plus SIGINT's number, 2."""
EXIT_UNREAD = 141
"""Exit status if nobody reads the output any more, as in `--help | head -1`: 128 plus SIGPIPE's number, 13."""
EXIT_TERMINATED = 143
"""Exit status after SIGTERM, as shells report it: 128 plus its number, 15; also after SIGHUP."""

Configuration = TypeVar("Configuration", bound=RunConfig)


ENVIRONMENT = "PERCEIVER"
"""Prefix of environment variables: PERCEIVER_TRAIN__STEPS is train.steps."""

_HELP_OF_ENVIRONMENT = f"""
Environment variables set options too: {ENVIRONMENT}_TRAIN__STEPS is train.steps. Files and the command line override
them, but an option that is null or auto in a file is taken from the environment.
""".strip()

_UNDECIDED = (None, "auto")
"""Values in a file that leave an option to the environment. A run's own config.yaml holds them for options that were
not set; if they overrode the environment, a resumed run would ignore a cluster's setting that workers have GPUs."""

_OPTIONS_OF_OTHER_JOBS = "search."
"""Prefix of options that jobs without them ignore in the environment, since all jobs of a cluster share it."""


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help formatter that shows types and defaults and keeps the line breaks of the epilog."""

    def _format_action_invocation(self, action: Action) -> str:
        # jsonargparse would list each option's environment variable, which the epilog explains in one sentence.
        return HelpFormatter._format_action_invocation(self, action)


def run_parser(description: str, config: type[RunConfig] = RunConfig) -> ArgumentParser:
    """Return the parser of a job: `--config`, `--print_config`, and every option of its configuration.

    Args:
        description: What the job does, for `--help`.
        config: The job's configuration class.
    """
    parser = ArgumentParser(
        description=description,
        usage="%(prog)s [--config FILE] [--OPTION VALUE ...]",
        epilog=f"{_HELP_OF_ENVIRONMENT}\n\n{_help_of_nested_options(config)}",
        formatter_class=_HelpFormatter,
        # An abbreviation that works today would become ambiguous when an option is added.
        allow_abbrev=False,
        # Errors are raised and become one line; otherwise argparse prints the usage of all options and exits.
        exit_on_error=False,
        default_env=True,
        env_prefix=ENVIRONMENT,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(config, fail_untyped=True)
    return parser


def parse_run(
    parser: ArgumentParser,
    arguments: Sequence[str],
    default_configs: Sequence[str],
    config: type[Configuration],
) -> tuple[Configuration, Namespace]:
    """Parse a job's arguments.

    Args:
        parser: A parser from `run_parser`, possibly with more options.
        arguments: Command line without the program's name.
        default_configs: YAML files to read when neither the arguments nor PERCEIVER_CONFIG name one; later files
            override earlier ones.
        config: The job's configuration class, as given to `run_parser`.

    Returns:
        The checked configuration, and all parsed values.

    Raises:
        UserError: An option is unknown, or a value is not allowed.
    """
    # Options override files wherever they are on the command line, so files are moved to the front.
    files, options = _split(arguments)
    if not files:
        named = os.environ.get(f"{ENVIRONMENT}_CONFIG")
        files = [named] if named else [*default_configs]
    contents = [_read_config_file(file) for file in files]
    # jsonargparse lets later arguments override earlier ones, so the order here is the precedence.
    arguments = [*(f"--config={file}" for file in files), *_environment_of_undecided(contents), *options]
    _check_environment(parser, config)
    try:
        parsed = parser.parse_args(arguments)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_reason(error, parser, config)) from error
    return _build(parser, parsed, config), parsed


def read_run(text: str) -> RunConfig:
    """Parse a configuration that `to_yaml` wrote.

    Args:
        text: YAML.

    Raises:
        UserError: An option is unknown, or a value is not allowed.
    """
    parser = run_parser("")
    try:
        parsed = parser.parse_object(yaml.safe_load(text))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_reason(error, parser, RunConfig)) from error
    return _build(parser, parsed, RunConfig)


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML, from which `--config` builds an equal configuration.

    Args:
        config: A configuration dataclass, usually a `RunConfig`.
    """
    # Unsorted, so that the file has the order of the documentation.
    return str(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=100, allow_unicode=True))


def run_job(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a job's main function on the command line and exit with its status.

    Args:
        main: Takes the arguments, returns the exit status; raises `UserError` for what the user can fix.

    Raises:
        SystemExit: Always; status 2 and one line on standard error for a `UserError` and for a standard output that
            cannot be written, but 141 if it is a pipe that nobody reads any more; 130 after Ctrl-C, 143 after
            SIGTERM or SIGHUP, unless the job handles them.
    """
    for number in handled_signals():
        signal.signal(number, _end)
    try:
        _check_encoding(sys.argv[1:])
        with checked_output():
            status = main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except OutputError as error:
        if error.errno == errno.EPIPE:
            raise SystemExit(EXIT_UNREAD) from None
        sys.stderr.write(f"error: standard output cannot be written: {error.strerror}\n")
        raise SystemExit(EXIT_USAGE) from None
    raise SystemExit(status)


def _check_encoding(arguments: Sequence[str]) -> None:
    """Check that the locale's encoding could read the arguments; otherwise a file would be called differently.

    Raises:
        UserError: It could not.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the argument {argument!a} has bytes that are no {sys.getfilesystemencoding()} text, the encoding of "
                "this process; set PYTHONUTF8=1, or a locale of UTF-8 such as LC_ALL=C.UTF-8"
            ) from error


def _end(number: int, _: object) -> NoReturn:
    sys.stderr.write(f"ended by {signal.Signals(number).name}\n")
    raise SystemExit(EXIT_TERMINATED)


def _build(parser: ArgumentParser, parsed: Namespace, config: type[Configuration]) -> Configuration:
    """Make the dataclasses of what was parsed; their `__post_init__` checks it.

    Raises:
        UserError: A value is not allowed.
        ValueError: A check has a bug.
    """
    try:
        built = parser.instantiate(parsed)
    except ValueError as error:
        # jsonargparse raises a ValueError of its own from what a nested dataclass raises. Anything but a UserError
        # behind it is a bug in our checks: every type has been validated by now.
        user_error = _user_error_behind(error)
        if user_error is None:
            raise
        raise UserError(str(user_error)) from error
    # `built` also has options that the job added to the parser, such as --dry_run.
    return config(**{field.name: built[field.name] for field in dataclasses.fields(config)})


def _help_of_nested_options(config: type) -> str:
    """Return help for the options that jsonargparse's own help leaves out: those of optional parts and of lists."""
    titles = {
        "optional": "--{0}.NAME VALUE sets an option of {0}:",
        "list": "Each entry of --{0} has:",
        "always": "{0} of each entry has:",
    }
    lines: list[str] = []
    hidden: list[str] = []
    for part in option_groups(config):
        if part.place != "always" or part.name.startswith(tuple(f"{name}." for name in hidden)):
            hidden.append(part.name)
            lines += ["", titles[part.place].format(part.name)]
            for option in part.options:
                facts = f"{option.meaning} (type: {option.type}, default: {option.default})"
                lines.append(f"  {option.name}")
                lines += textwrap.wrap(facts, 78, initial_indent=" " * 24, subsequent_indent=" " * 24)
    return "\n".join(lines).lstrip()


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into the files given as `--config FILE` or `--config=FILE`, and all others."""
    files, options = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        file = (value if equals else next(remaining, None)) if name == "--config" else None
        if file is None:
            options.append(argument)
        else:
            files.append(file)
    return files, options


def _read_config_file(file: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: The file is missing, cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"--config is '{file}', which cannot be read ({reason}); name a YAML file") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", str(error))
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"--config is '{file}', which is not YAML{line}: {_one_line(problem)}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"--config is '{file}', which holds {_type_name(content)}, must hold a mapping such as "
            "'train: {steps: 10}'"
        )
    return content


def _environment_of_undecided(contents: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield, as arguments, the environment's options that the last file with a value for them leaves open."""
    for name, variable in _options_of_environment():
        levels = name.split(".")
        named = [given for content in contents for given in _values_at(content, levels)]
        if named and named[-1] in _UNDECIDED:
            yield f"--{name}={os.environ[variable]}"


def _values_at(tree: Any, levels: Sequence[str]) -> Iterator[Any]:
    """Yield the value at a path of names in nested mappings, if there is one."""
    for level in levels:
        if not isinstance(tree, dict) or level not in tree:
            return
        tree = tree[level]
    yield tree


def _options_of_environment() -> Iterator[tuple[str, str]]:
    """Yield the name of each option that the environment sets, and its variable."""
    for variable in sorted(os.environ):
        if variable.startswith(f"{ENVIRONMENT}_"):
            yield variable.removeprefix(f"{ENVIRONMENT}_").lower().replace("__", "."), variable


def _type_name(content: object) -> str:
    return "nothing" if content is None else f"a {type(content).__name__}"


def _user_error_behind(error: BaseException) -> UserError | None:
    """Return the UserError that an error was raised from, however many levels below; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _reason(error: BaseException, parser: ArgumentParser, config: type) -> str:
    """Return one line with the reason why parsing failed.

    It is the message of the `UserError` that caused the failure, if any. Otherwise it is made from jsonargparse's
    text: lines `Parser key "..."`, one per level of the option's name, followed by the error at that option.
    """
    user_error = _user_error_behind(error)
    if user_error is not None:
        return str(user_error)
    text = str(error)
    path = list(dict.fromkeys(re.findall(r'(?:Parser key "|Group \')([\w.]+)', text)))
    unknown = re.search(r"(?:unrecognized arguments: -*|accept option '|Option ')([^\s=']+)", text)
    if unknown:
        return _no_such_option(".".join([*path, unknown[1]]), parser, config)
    missing = re.search(r"arguments are required: (\w+)", text)
    if missing:
        return f"{'.'.join([*path, missing[1]])} has no default: set it in the config file or on the command line"
    name, value = ".".join(path), re.search(r"(?:Got value: |Given value: |load config ')([^\n']*)", text)
    if value and name in value_types(config):
        return f"{name} is '{value[1]}', must be {value_types(config)[name]}"
    return _one_line(text)


def _check_environment(parser: ArgumentParser, config: type) -> None:
    """Reject variables that name no option: each is probably a typo, and jsonargparse would ignore it.

    Raises:
        UserError: A variable names no option.
    """
    for name, variable in _options_of_environment():
        known = name in parser.get_defaults() or name in value_types(config)
        if not known and not name.startswith(_OPTIONS_OF_OTHER_JOBS):
            raise UserError(f"environment variable {variable}: {_no_such_option(name, parser, config)}")


def _no_such_option(name: str, parser: ArgumentParser, config: type) -> str:
    known = {*value_types(config), *parser.get_defaults().keys()}
    levels = name.split(".")
    prefixes = [".".join(levels[: depth + 1]) for depth in range(len(levels))]
    unknown = next((prefix for prefix in prefixes if prefix not in known), name)
    return f"there is no option {unknown}; {nearest_option(unknown, known)}"


def _one_line(message: object) -> str:
    return re.sub(r"\s*\n\s*", " ", str(message)).strip()
