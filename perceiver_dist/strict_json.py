"""Strict JSON, without the NaN and Infinity that Python writes and other parsers reject: they become null.

Read back, null becomes NaN.
"""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: object, indent: int | None = None) -> str:
    """Return a value as JSON text.

    Args:
        value: Nested mappings and sequences of values that JSON can hold.
        indent: Spaces per level; None puts everything on one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return metrics read from JSON with NaN in place of None.

    Args:
        values: Metrics, null read as None.
    """
    return {name: math.nan if value is None else value for name, value in values.items()}


def _finite(value: object) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
