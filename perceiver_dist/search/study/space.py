"""Search space: the options that vary, their values, and configurations with other values of them."""

import itertools
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from math import isfinite
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from perceiver_dist.config.options import nearest_option, type_text
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from pipelines.shards.source import SourceConfig

_RANGE_KEYS = {"low", "high", "log", "step"}
_FIXED = ("storage.", "tracking.", "train.eval_every", "train.checkpoint_every")
"""Options that cannot vary: folders, MLflow runs, evaluations and checkpoints of trials are managed by the search."""
_DEFINES_THE_SCORE = (".name", ".task", ".eval_shards", ".num_classes", ".label")
"""Options of a source that cannot vary, since scores would not be comparable."""
_MAX_COMBINATIONS = 1000
"""Combinations with other options that are tried for a value that is not valid alone; they take 0.2 seconds."""


@dataclass(frozen=True)
class Choices:
    """Dimension of an option that takes one of several values.

    Attributes:
        values: The values, in the order given.
    """

    values: tuple[Any, ...]

    @property
    def distribution(self) -> BaseDistribution:
        """Distribution for Optuna: over indices of values, since Optuna does not support lists as categories."""
        return CategoricalDistribution(tuple(range(len(self.values))))

    @property
    def checked_values(self) -> Sequence[Any]:
        """Values that are checked before a search starts: all of them."""
        return self.values

    @property
    def grid(self) -> Sequence[Any] | None:
        """All values."""
        return self.values

    def from_optuna(self, drawn: Any) -> Any:
        """Return the value for an index that Optuna drew.

        Args:
            drawn: A draw from `distribution`.
        """
        return self.values[drawn]

    def to_optuna(self, value: Any) -> Any:
        """Return the index for a value; None if it is not in the dimension.

        Args:
            value: Any value of the option.
        """
        return self.values.index(value) if value in self.values else None


@dataclass(frozen=True)
class Range:
    """Dimension of an option that takes a number from an interval.

    Attributes:
        low: Smallest value.
        high: Upper bound, included.
        log: Whether the logarithm of the value is uniformly distributed, instead of the value.
        step: Distance between two values, from `low`; None for any number, or any integer.
        integer: Whether the option is an integer.
    """

    low: float
    high: float
    log: bool
    step: float | None
    integer: bool

    @property
    def distribution(self) -> BaseDistribution:
        """Distribution for Optuna."""
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def checked_values(self) -> Sequence[Any]:
        """Values that are checked before a search starts: both ends, since options are limited by intervals."""
        return [self.low, self.high]

    @property
    def grid(self) -> Sequence[Any] | None:
        """All values; None if there are infinitely many."""
        if not self.integer and self.step is None:
            return None
        step = self.step or 1
        # Without the small term, rounding would drop the upper end of ranges such as 0 to 0.3 in steps of 0.1.
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [self.low + index * step for index in range(count)]

    def from_optuna(self, drawn: Any) -> Any:
        """Return the value that Optuna drew.

        Args:
            drawn: A draw from `distribution`.
        """
        return drawn

    def to_optuna(self, value: Any) -> Any:
        """Return the value; None if it is not in the dimension.

        Args:
            value: Any value of the option.
        """
        inside = isinstance(value, int | float) and self.distribution._contains(value)
        return value if inside else None


Dimension = Choices | Range


def parse_space(space: Mapping[str, Any], config: RunConfig) -> dict[str, Dimension]:
    """Parse and check the space of a search, before anything starts.

    Args:
        space: Dotted name of an option -> list of values, or mapping with low, high and optionally log or step.
            An option of a source is named sources.SOURCE.OPTION.
        config: Configuration of the training.

    Returns:
        Dotted name -> dimension.

    Raises:
        UserError: The space is empty, an option does not exist or may not vary, a range is malformed, or a value has
            the wrong type or is not valid in any combination with values of the other options.
    """
    if not space:
        raise UserError(
            "search.space is empty: name the options to vary, such as {model.latents: [16, 32, 64]}, or add "
            "--config jobs/configs/search.yaml"
        )
    dimensions = {}
    for name, given in space.items():
        dimensions[name] = _dimension(name, given, _find_option(config, name)[0])
    for name, dimension in dimensions.items():
        for value in dimension.checked_values:
            _check_feasible(config, dimensions, name, value)
    return dimensions


def values_of(config: RunConfig, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of options by dotted name, as YAML represents them: a tuple as a list.

    Args:
        config: Configuration of a training.
        names: Dotted names of options.

    Raises:
        UserError: There is no such option.
    """
    return {name: _as_yaml_value(_find_option(config, name)[1]) for name in names}


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return a copy of a configuration with other values of some options.

    Args:
        config: Configuration of a training.
        values: Dotted name -> value.

    Raises:
        UserError: The values are not valid together.
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {})
        branch[last] = value
    changed: RunConfig = _replace_nested(config, tree)
    return changed


def combinations(dimensions: Mapping[str, Dimension]) -> Iterator[dict[str, Any]]:
    """Yield every combination of values; the last option varies fastest.

    Args:
        dimensions: The dimensions from `parse_space`.

    Raises:
        UserError: A range of floats has no step, so that it has infinitely many values.
    """
    grids: list[Sequence[Any]] = []
    for name, dimension in dimensions.items():
        if dimension.grid is None:
            raise UserError(
                f"search.space: {name} is a range without step, which has infinitely many values; for search.sampler "
                "grid give it a step or a list of values, or choose another sampler"
            )
        grids.append(dimension.grid)
    for values in itertools.product(*grids):
        yield dict(zip(dimensions, values, strict=True))


def _dimension(name: str, given: Any, hint: Any) -> Dimension:
    if isinstance(given, list) and given:
        for value in given:
            _check_type(name, value, hint)
        return Choices(tuple(given))
    if not isinstance(given, Mapping) or not {"low", "high"} <= set(given) <= _RANGE_KEYS:
        raise UserError(
            f"search.space: {name} is {given}, must be a list of values, or a range such as "
            "{low: 1, high: 8}, optionally with log: true or step: 2"
        )
    low, high, step = given["low"], given["high"], given.get("step")
    numbers = [low, high] if step is None else [low, high, step]
    # `type(...) in` and not isinstance: bool is a subclass of int.
    if not all(type(number) in (int, float) and isfinite(number) for number in numbers):
        raise UserError(f"search.space: {name} is {dict(given)}, whose low, high and step must be numbers")
    for number in numbers:
        _check_type(name, number, hint)
    log = bool(given.get("log"))
    if not low < high or (log and low <= 0) or (step is not None and (step <= 0 or log)):
        raise UserError(
            f"search.space: {name} is {dict(given)}; low must be below high and, with log, above 0; step must be "
            "above 0, and cannot be combined with log"
        )
    return Range(low, high, log, step, integer=float not in (hint, *get_args(hint)))


def _find_option(config: RunConfig, name: str) -> tuple[Any, Any]:
    """Return the type and the value of an option.

    Raises:
        UserError: There is no such option, or it may not vary.
    """
    if name.startswith(_FIXED):
        raise UserError(f"search.space: {name} cannot vary, it is managed by the search; remove it")
    if name.startswith("sources.") and name.endswith(_DEFINES_THE_SCORE):
        raise UserError(
            f"search.space: {name} defines what is scored, so scores would not be comparable; remove it"
        )
    hint: Any = RunConfig
    part: Any = config
    for key in name.split("."):
        if part is config.sources:
            hint, part = SourceConfig, {source.name: source for source in part}.get(key)
            if part is None:
                raise UserError(f"search.space: {name} names no source; write sources.SOURCE.OPTION")
        elif is_dataclass(part) and key in get_type_hints(type(part)):
            hint, part = get_type_hints(type(part))[key], getattr(part, key)
        else:
            raise UserError(f"search.space: there is no option {name}; {nearest_option(name)}")
        if part is None and any(is_dataclass(choice) for choice in get_args(hint)):
            raise UserError(f"search.space: {name} cannot vary: model.{key} is null; set model.{key}.*")
    if _is_group(part):
        raise UserError(f"search.space: {name} is a group of options; name one of them")
    return hint, part


def _is_group(part: Any) -> bool:
    return is_dataclass(part) or (isinstance(part, list) and any(map(is_dataclass, part)))


def _check_type(name: str, value: Any, hint: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    # The parser converts the text "16" to a number and accepts null for any type. `with_values` converts nothing, so
    # only values that the parser leaves as they are will do.
    try:
        fits = _as_yaml_value(parser.parse_object({"value": value}).value) == value
    except ArgumentError:
        fits = False
    if not fits or (value is None and NoneType not in get_args(hint)):
        raise UserError(f"search.space: {name} is {value!r}, must be {type_text(hint)}")


def _as_yaml_value(value: Any) -> Any:
    """Return a value as it is read back from YAML and JSON, so that it equals its copy in a loaded record."""
    return list(value) if isinstance(value, tuple) else value


def _check_feasible(config: RunConfig, dimensions: Mapping[str, Dimension], name: str, value: Any) -> None:
    """Check that a value is valid alone or together with some values of the other options.

    Raises:
        UserError: It is not.
    """
    others = {other: dimension.checked_values for other, dimension in dimensions.items() if other != name}
    tried = itertools.islice(itertools.product(*others.values()), _MAX_COMBINATIONS)
    reason = ""
    # First with the configuration's own values of the others: its error names this value, not a combination.
    for combination in itertools.chain([()], tried):
        try:
            with_values(config, {name: value, **dict(zip(others, combination, strict=False))})
        except UserError as error:
            reason = reason or str(error)
        else:
            return
    raise UserError(f"search.space: {reason}")


def _replace_nested(part: Any, tree: Mapping[str, Any]) -> Any:
    """Return a part of the configuration with some of its options replaced.

    They are replaced together, since the part checks them together when it is built.
    """
    if isinstance(part, list):
        return [
            _replace_nested(source, tree[source.name]) if source.name in tree else source for source in part
        ]
    changes = {
        key: _replace_nested(getattr(part, key), value) if _is_group(getattr(part, key)) else value
        for key, value in tree.items()
    }
    return replace(part, **changes)
