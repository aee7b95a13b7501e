"""From command line and YAML to a checked `RunConfig`; a wrong option ends in one line and exit status 2."""

import dataclasses
import os
import re
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

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Configuration = TypeVar("Configuration", bound=RunConfig)


ENVIRONMENT = "PERCEIVER"
"""What the names of environment variables begin with: PERCEIVER_TRAIN__STEPS is train.steps."""

_HELP_OF_ENVIRONMENT = f"""
An environment variable sets an option too, {ENVIRONMENT}_TRAIN__STEPS is train.steps. Files and command line go
before it, but null and auto in a file leave an option to it.
""".strip()

_LEFT_OPEN = (None, "auto")
"""What a file says of an option that it does not decide. A run's own config.yaml says it too, and must not hide from a
cluster's environment that there are GPUs."""

_PARTS_OF_ANOTHER_JOB = "search."
"""A cluster's environment is the same for all jobs; one that does not search passes over the search's options."""


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Names types and defaults, and leaves the text after the options as it is."""

    def _format_action_invocation(self, action: Action) -> str:
        # jsonargparse would write each option's environment variable beside it; one sentence says it for all.
        return HelpFormatter._format_action_invocation(self, action)


def run_parser(description: str, config: type[RunConfig] = RunConfig) -> ArgumentParser:
    """Return the parser of a job: `--config`, `--print_config`, and every option of its configuration.

    Args:
        description: What the job does, for `--help`.
        config: The job's configuration.
    """
    parser = ArgumentParser(
        description=description,
        usage="%(prog)s [--config FILE] [--OPTION VALUE ...]",
        epilog=f"{_HELP_OF_ENVIRONMENT}\n\n{_help_of_nested_options(config)}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
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
        parser: A parser of `run_parser`, perhaps with options added.
        arguments: Command line without the program's name.
        default_configs: YAML files taken, the later over the earlier, when neither the arguments nor PERCEIVER_CONFIG
            name one.
        config: The job's configuration, as the parser was given it.

    Returns:
        The checked configuration, and everything that was parsed.

    Raises:
        UserError: An option is unknown, or a value is not allowed; one line.
    """
    files, options = _split(arguments)
    if not files:
        named = os.environ.get(f"{ENVIRONMENT}_CONFIG")
        files = [named] if named else [*default_configs]
    contents = [_read_config_file(file) for file in files]
    # The later goes before the earlier.
    arguments = [*(f"--config={file}" for file in files), *_environment_left_open(contents), *options]
    _check_environment(parser, config)
    try:
        parsed = parser.parse_args(arguments)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_reason(error, parser, config)) from error
    return _build(parser, parsed, config), parsed


def read_run(text: str) -> RunConfig:
    """Return the configuration that `to_yaml` wrote.

    Args:
        text: YAML.

    Raises:
        UserError: An option is unknown, or a value is not allowed; one line.
    """
    parser = run_parser("")
    try:
        parsed = parser.parse_object(yaml.safe_load(text))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_reason(error, parser, RunConfig)) from error
    return _build(parser, parsed, RunConfig)


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML that `--config` reads back to an equal configuration.

    Args:
        config: A configuration dataclass, usually a `RunConfig`.
    """
    return str(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=100, allow_unicode=True))


def run_job(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a job's main function on the command line and exit with its status.

    Args:
        main: Takes the arguments, returns the exit status; raises `UserError` for what the user can mend.

    Raises:
        SystemExit: Always; status 2 and one line on standard error for a `UserError`, 130 after Ctrl-C.
    """
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(status)


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
    return config(**{field.name: built[field.name] for field in dataclasses.fields(config)})


def _help_of_nested_options(config: type) -> str:
    """Return the help of the options that the parser hides, since their part may be absent or there many times."""
    titles = {
        "optional": "--{0}.NAME VALUE sets the part {0}:",
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
    """Return the files given as `--config FILE` or `--config=FILE`, and the other arguments."""
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
    """Return the YAML mapping that a file holds.

    Raises:
        UserError: It is not there, or holds something else.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
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


def _environment_left_open(contents: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield, as arguments, the options that the environment sets and the last file to name them leaves open."""
    for name, variable in _options_of_environment():
        levels = name.split(".")
        named = [given for content in contents for given in _values_at(content, levels)]
        if named and named[-1] in _LEFT_OPEN:
            yield f"--{name}={os.environ[variable]}"


def _values_at(tree: Any, levels: Sequence[str]) -> Iterator[Any]:
    """Yield the value at a dotted name in nested mappings, if there is one."""
    for level in levels:
        if not isinstance(tree, dict) or level not in tree:
            return
        tree = tree[level]
    yield tree


def _options_of_environment() -> Iterator[tuple[str, str]]:
    """Yield the options that the environment sets, each with its variable."""
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
    """Return why parsing failed as one line: our own message if one is behind the parser's, else from its text.

    jsonargparse reports the way to a wrong value in lines `Parser key "..."`, one for each level, followed by what
    is wrong there.
    """
    user_error = _user_error_behind(error)
    if user_error is not None:
        return str(user_error)
    text = str(error)
    way = list(dict.fromkeys(re.findall(r'(?:Parser key "|Group \')([\w.]+)', text)))
    unknown = re.search(r"(?:unrecognized arguments: -*|accept option '|Option ')([^\s=']+)", text)
    if unknown:
        return _no_such_option(".".join([*way, unknown[1]]), parser, config)
    missing = re.search(r"arguments are required: (\w+)", text)
    if missing:
        return f"{'.'.join([*way, missing[1]])} has no default: give it in the config file or on the command line"
    name, value = ".".join(way), re.search(r"(?:Got value: |Given value: |load config ')([^\n']*)", text)
    if value and name in value_types(config):
        return f"{name} is '{value[1]}', must be {value_types(config)[name]}"
    return _one_line(text)


def _check_environment(parser: ArgumentParser, config: type) -> None:
    """Refuse a variable that names no option: it was meant to set something, and would be passed over.

    Raises:
        UserError: There is one.
    """
    for name, variable in _options_of_environment():
        known = name in parser.get_defaults() or name in value_types(config)
        if not known and not name.startswith(_PARTS_OF_ANOTHER_JOB):
            raise UserError(f"environment variable {variable}: {_no_such_option(name, parser, config)}")


def _no_such_option(name: str, parser: ArgumentParser, config: type) -> str:
    known = {*value_types(config), *parser.get_defaults().keys()}
    levels = name.split(".")
    prefixes = [".".join(levels[: depth + 1]) for depth in range(len(levels))]
    unknown = next((prefix for prefix in prefixes if prefix not in known), name)
    return f"there is no option {unknown}; {nearest_option(unknown, known)}"


def _one_line(message: object) -> str:
    return re.sub(r"\s*\n\s*", " ", str(message)).strip()
