"""List of all options by dotted name, read from the configuration dataclasses.

`--help`, error messages and docs/configuration.md are all generated from this list, so that they agree.
"""

import dataclasses
import difflib
import inspect
import json
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from perceiver_dist.config.run_config import RunConfig

Place = Literal["always", "optional", "list"]
"""How often a part occurs in the tree: once; once or not at all (null or a plain value instead); or as list entries."""

_TYPE_OF_PART: dict[Place, str] = {
    "always": "mapping",
    "optional": "mapping or null",
    "list": "list of mappings",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option.

    Attributes:
        name: Dotted name, such as train.steps.
        type: Allowed values, such as "int", "one of fp32, bf16", "str or null".
        default: Default as JSON, which is also YAML; "required" if there is none.
        meaning: One paragraph from the docstring.
    """

    name: str
    type: str
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class OptionGroup:
    """The options of one configuration dataclass.

    Attributes:
        name: Dotted name of the part, such as model.image.
        config: The dataclass.
        place: How often the part occurs in the tree.
        summary: First line of the dataclass's docstring.
        options: Its options in order. Nested dataclasses that always occur are groups of their own instead.
    """

    name: str
    config: type
    place: Place
    summary: str
    options: list[Option]


def option_groups(config: type, name: str = "", place: Place = "always") -> list[OptionGroup]:
    """Return the option group of a configuration dataclass, followed by those nested in it.

    Args:
        config: The dataclass.
        name: Dotted name of the part; empty for the root.
        place: How often the part occurs in the tree.
    """
    hints, meanings = get_type_hints(config), documented_fields(config)
    options, nested = [], []
    for field in dataclasses.fields(config):
        full_name = f"{name}.{field.name}".lstrip(".")
        inner = _group_within(hints[field.name])
        if inner:
            nested += option_groups(inner[0], full_name, inner[1])
        if not inner or inner[1] == "optional":
            shown_type = type_text(hints[field.name])
            options.append(Option(full_name, shown_type, _default_text(field), meanings.get(field.name, "")))
    summary = inspect.getdoc(config) or ""
    return [OptionGroup(name, config, place, summary.partition("\n")[0], options), *nested]


def documented_fields(config: type) -> dict[str, str]:
    """Return the documentation of each attribute in a dataclass's docstring, as one paragraph by name.

    Args:
        config: The dataclass.
    """
    parsed = docstring_parser.parse(inspect.getdoc(config) or "", docstring_parser.DocstringStyle.GOOGLE)
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}


def value_types(config: type = RunConfig) -> dict[str, str]:
    """Return the allowed values of every option and every part of a configuration, by dotted name.

    The options of list entries have the list's name as prefix, as in sources.weight.

    Args:
        config: The root of the configuration.
    """
    types_by_name: dict[str, str] = {}
    for part in option_groups(config):
        types_by_name.setdefault(part.name, _TYPE_OF_PART[part.place])
        types_by_name |= {option.name: option.type for option in part.options}
    return types_by_name


def _group_within(hint: Any) -> tuple[type, Place] | None:
    """Return the dataclass in a field's type and how often it occurs; None for a plain value."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint, "always"
    for inner in get_args(hint):
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            return inner, "list" if get_origin(hint) is list else "optional"
    return None


def nearest_option(name: str, known: Iterable[str] | None = None) -> str:
    """Return a suggestion in place of an option that does not exist, such as "did you mean train.steps?".

    Args:
        name: Dotted name of the missing option.
        known: Names of all options; None for those of a `RunConfig`.
    """
    near = difflib.get_close_matches(name, sorted(known or value_types()), n=1)
    return f"did you mean {near[0]}?" if near else "see --help"


def type_text(hint: Any) -> str:
    """Return a type in words: "int", "one of fp32, bf16", "str or null".

    Args:
        hint: A type annotation.
    """
    if get_origin(hint) is Literal:
        return f"one of {', '.join(str(choice) for choice in get_args(hint))}"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(type_text(choice) for choice in get_args(hint))
    if hint is types.NoneType:
        return "null"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    is_plain_class = isinstance(hint, type) and not get_args(hint)
    return hint.__name__ if is_plain_class else str(hint).replace("typing.", "")


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return json.dumps(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else json.dumps(field.default)
