"""The space of a search: which options vary, over which values, and a configuration with other values."""

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
_DECIDED_BY_THE_SEARCH = ("storage.", "tracking.", "train.eval_every", "train.checkpoint_every")
_WHAT_IS_SCORED = (".name", ".task", ".eval_shards", ".num_classes", ".label")
_COMBINATIONS_TRIED = 1000
"""With how many values of the other options a value that is refused alone is tried."""


@dataclass(frozen=True)
class Choices:
    """An option that takes one of several values.

    Attributes:
        values: The values, in the order given.
    """

    values: tuple[Any, ...]

    @property
    def distribution(self) -> BaseDistribution:
        """What Optuna draws: the place of a value, since a value may be a list."""
        return CategoricalDistribution(tuple(range(len(self.values))))

    @property
    def checked(self) -> Sequence[Any]:
        """Values that the whole dimension is checked by."""
        return self.values

    @property
    def grid(self) -> Sequence[Any] | None:
        """All values."""
        return self.values

    def value(self, drawn: Any) -> Any:
        """Return the value of what Optuna drew.

        Args:
            drawn: From `distribution`.
        """
        return self.values[drawn]

    def drawn(self, value: Any) -> Any:
        """Return what Optuna would have drawn for a value, None if it is not in the dimension.

        Args:
            value: Any value of the option.
        """
        return self.values.index(value) if value in self.values else None


@dataclass(frozen=True)
class Range:
    """An option that takes a number between two.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether its logarithm is drawn evenly.
        step: Distance of the values from each other; None for every number (every integer).
        integer: Whether the option is an integer.
    """

    low: float
    high: float
    log: bool
    step: float | None
    integer: bool

    @property
    def distribution(self) -> BaseDistribution:
        """What Optuna draws."""
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def checked(self) -> Sequence[Any]:
        """Values that the whole dimension is checked by."""
        return [self.low, self.high]

    @property
    def grid(self) -> Sequence[Any] | None:
        """All values, None if there is no end of them."""
        if not self.integer and self.step is None:
            return None
        step = self.step or 1
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [self.low + place * step for place in range(count)]

    def value(self, drawn: Any) -> Any:
        """Return the value of what Optuna drew.

        Args:
            drawn: From `distribution`.
        """
        return drawn

    def drawn(self, value: Any) -> Any:
        """Return what Optuna would have drawn for a value, None if it is not in the dimension.

        Args:
            value: Any value of the option.
        """
        inside = isinstance(value, int | float) and self.distribution._contains(value)
        return value if inside else None


Dimension = Choices | Range


def parse_space(space: Mapping[str, Any], config: RunConfig) -> dict[str, Dimension]:
    """Check the space of a search, before anything is started.

    Args:
        space: Dotted name of an option -> list of values, or mapping with low, high and perhaps log and step.
            An option of a source is named sources.SOURCE.OPTION.
        config: The training that the options are of.

    Returns:
        A dimension for each option.

    Raises:
        UserError: The space is empty, an option does not exist or is the search's own, a range is none, or a value
            has the wrong type or is possible in no combination with the other options' values.
    """
    if not space:
        raise UserError(
            "search.space is empty: name what to vary, such as {model.latents: [16, 32, 64]}, or add "
            "--config jobs/configs/search.yaml"
        )
    dimensions = {}
    for name, given in space.items():
        dimensions[name] = _dimension(name, given, _look_up(config, name)[0])
    for name, dimension in dimensions.items():
        for value in dimension.checked:
            _check_possible(config, dimensions, name, value)
    return dimensions


def values_of(config: RunConfig, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of options by name, as a file would give them: a tuple as a list.

    Args:
        config: A training's configuration.
        names: Dotted names.

    Raises:
        UserError: There is no such option.
    """
    return {name: _as_in_a_file(_look_up(config, name)[1]) for name in names}


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return a configuration with other values of some options.

    Args:
        config: A training's configuration.
        values: Dotted name -> value.

    Raises:
        UserError: The values are not possible together.
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *way, last = name.split(".")
        branch = tree
        for key in way:
            branch = branch.setdefault(key, {})
        branch[last] = value
    changed: RunConfig = _replaced(config, tree)
    return changed


def combinations(dimensions: Mapping[str, Dimension]) -> Iterator[dict[str, Any]]:
    """Yield every combination of values, the last option varying fastest.

    Args:
        dimensions: From `parse_space`.

    Raises:
        UserError: A range has no step, so that there is no end of its values.
    """
    grids: list[Sequence[Any]] = []
    for name, dimension in dimensions.items():
        if dimension.grid is None:
            raise UserError(
                f"search.space: {name} is a range without step, which a grid cannot go through; give it a step "
                "or a list of values, or choose another search.sampler"
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
            "{low: 1, high: 8} with perhaps log: true or step: 2"
        )
    low, high, step = given["low"], given["high"], given.get("step")
    numbers = [low, high] if step is None else [low, high, step]
    if not all(type(number) in (int, float) and isfinite(number) for number in numbers):
        raise UserError(f"search.space: {name} is {dict(given)}, whose low, high and step must be numbers")
    for number in numbers:
        _check_type(name, number, hint)
    log = bool(given.get("log"))
    if not low < high or (log and low <= 0) or (step is not None and (step <= 0 or log)):
        raise UserError(
            f"search.space: {name} is {dict(given)}; low must be below high, above 0 with log, and step above 0 "
            "and without log"
        )
    return Range(low, high, log, step, integer=float not in (hint, *get_args(hint)))


def _look_up(config: RunConfig, name: str) -> tuple[Any, Any]:
    """Return an option's type and value.

    Raises:
        UserError: There is no such option, or the search decides about it itself.
    """
    if name.startswith(_DECIDED_BY_THE_SEARCH):
        raise UserError(f"search.space: {name} is decided by the search itself; take it out")
    if name.startswith("sources.") and name.endswith(_WHAT_IS_SCORED):
        raise UserError(
            f"search.space: {name} decides what is scored; scores could not be compared: take it out"
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
            raise UserError(f"search.space: {name} cannot vary, model.{key} is null; set model.{key}.*")
    if _is_group(part):
        raise UserError(f"search.space: {name} is a group of options; name one of them")
    return hint, part


def _is_group(part: Any) -> bool:
    return is_dataclass(part) or (isinstance(part, list) and any(map(is_dataclass, part)))


def _check_type(name: str, value: Any, hint: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    # The parser takes the text "16" for the number and null for anything; what it makes of them would not be tried.
    try:
        fits = _as_in_a_file(parser.parse_object({"value": value}).value) == value
    except ArgumentError:
        fits = False
    if not fits or (value is None and NoneType not in get_args(hint)):
        raise UserError(f"search.space: {name} is {value!r}, must be {type_text(hint)}")


def _as_in_a_file(value: Any) -> Any:
    """Return a value as YAML and JSON give it back, so that it equals itself in a record that was read."""
    return list(value) if isinstance(value, tuple) else value


def _check_possible(config: RunConfig, dimensions: Mapping[str, Dimension], name: str, value: Any) -> None:
    """Refuse a value that is possible neither alone nor with values of the other options.

    Raises:
        UserError: It is not.
    """
    others = {other: dimension.checked for other, dimension in dimensions.items() if other != name}
    mixes = itertools.islice(itertools.product(*others.values()), _COMBINATIONS_TRIED)
    reason = ""
    for mix in itertools.chain([()], mixes):
        try:
            with_values(config, {name: value, **dict(zip(others, mix, strict=False))})
        except UserError as error:
            reason = reason or str(error)
        else:
            return
    raise UserError(f"search.space: {reason}")


def _replaced(part: Any, tree: Mapping[str, Any]) -> Any:
    """Return a part of the configuration with some of its options replaced, all at once, as it checks them at once."""
    if isinstance(part, list):
        return [_replaced(source, tree[source.name]) if source.name in tree else source for source in part]
    changes = {
        key: _replaced(getattr(part, key), value) if _is_group(getattr(part, key)) else value
        for key, value in tree.items()
    }
    return replace(part, **changes)
