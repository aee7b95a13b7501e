"""Tests of strict JSON: numbers that are not finite become null, and NaN when read back."""

import json
import math

import pytest

from perceiver_dist.strict_json import numbers, to_json


def test_numbers_that_are_not_finite_become_null_and_read_back_as_nan() -> None:
    values = {"loss": math.nan, "norm": math.inf, "accuracy": 0.5}
    assert json.loads(to_json(values)) == {"loss": None, "norm": None, "accuracy": 0.5}
    assert numbers(json.loads(to_json(values))) == pytest.approx(
        {"loss": math.nan, "norm": math.nan, "accuracy": 0.5}, nan_ok=True
    )


def test_nested_values_keep_their_structure() -> None:
    value = {"a": [1, (2.0, math.nan)], "b": {"c": "text"}}
    assert json.loads(to_json(value, indent=1)) == {"a": [1, [2.0, None]], "b": {"c": "text"}}
