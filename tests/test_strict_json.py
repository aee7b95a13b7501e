"""Strict JSON: a round trip of numbers that are not finite."""

import json
import math

import pytest

from perceiver_dist.strict_json import numbers, to_json


def test_non_finite_numbers_become_null_and_are_read_as_nan() -> None:
    values = {"loss": math.nan, "norm": math.inf, "accuracy": 0.5}
    assert json.loads(to_json(values)) == {"loss": None, "norm": None, "accuracy": 0.5}
    assert numbers(json.loads(to_json(values))) == pytest.approx(
        {"loss": math.nan, "norm": math.nan, "accuracy": 0.5}, nan_ok=True
    )


def test_nested_values_keep_their_structure() -> None:
    value = {"a": [1, (2.0, math.nan)], "b": {"c": "text"}}
    assert json.loads(to_json(value, indent=1)) == {"a": [1, [2.0, None]], "b": {"c": "text"}}
