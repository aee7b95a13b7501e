"""JSON that every reader takes: a number that is not finite is null, and comes back as NaN."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: object, indent: int | None = None) -> str:
    """Return a value as JSON text.

    Args:
        value: Nested mappings and sequences of what JSON can hold.
        indent: Spaces for each level; None puts everything on one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return metrics as they were before `to_json`.

    Args:
        values: Metrics that were read, null as None.
    """
    return {name: math.nan if value is None else value for name, value in values.items()}


def _finite(value: object) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
