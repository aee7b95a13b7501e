"""Text formats of names, values and quantities, for the terminal, the figures and the report."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from perceiver_dist.search.study.search_record import SearchRecord, Trial

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Shorten dotted names to the shortest suffixes that are unique.

    Args:
        names: Dotted names of options.

    Returns:
        Name -> short name, such as model.latents -> latents.
    """
    parts = {name: name.split(".") for name in names}
    return {name: _shortest_tail(name, parts) for name in parts}


def _shortest_tail(name: str, parts: dict[str, list[str]]) -> str:
    for length in range(1, len(parts[name])):
        tail = parts[name][-length:]
        if sum(other[-length:] == tail for other in parts.values()) == 1:
            return ".".join(tail)
    return name


def value_text(value: Any) -> str:
    """Format a value as in YAML, floats with at most four significant digits.

    Args:
        value: A number, boolean, text, list, mapping or None.
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def values_text(trial: Trial, record: SearchRecord) -> str:
    """Format the values of a trial that differ from the baseline's, such as "latents 64, width 32".

    Args:
        trial: One of the record's trials.
        record: Record of the search.

    Returns:
        The values that differ; all values if there is no baseline; "baseline" for the baseline itself.
    """
    baseline = record.baseline
    if trial is baseline:
        return "baseline"
    names = short_names(trial.values)
    different = [
        f"{names[name]} {value_text(value)}"
        for name, value in trial.values.items()
        if baseline is None or baseline.values.get(name) != value
    ]
    return ", ".join(different) or "the baseline's values"


def quantity(number: float, unit: str = "") -> str:
    """Format a quantity with three significant digits and an SI prefix, such as "1.23 TFLOPs".

    Args:
        number: The quantity, not negative.
        unit: Its unit; "" for a bare number.
    """
    # Rounded before the prefix is chosen, so that 999.6 becomes "1 k" and not "1e+03".
    digits, _, exponent = f"{number:.2e}".partition("e")
    thousands = min(max(int(exponent) // 3, 0), len(_PREFIXES) - 1)
    shown = float(digits) * 10.0 ** (int(exponent) - 3 * thousands)
    return f"{shown:.3g} {_PREFIXES[thousands]}{unit}".rstrip()


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Rank trials by score, best first: completed ones, then others that have a score, then the rest.

    Args:
        trials: Trials in any state.
    """
    return sorted(
        trials,
        key=lambda trial: (
            trial.score is None,
            trial.state != "completed",
            -(trial.score or 0.0),
            trial.cost.training_flops,
            trial.number,
        ),
    )
