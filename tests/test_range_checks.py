"""Tests of the range check of option dataclasses: bounds, None, NaN, lists, and the wording of the message."""

from dataclasses import dataclass
from math import inf, nan

import pytest

from perceiver_dist.errors import UserError
from perceiver_dist.range_checks import check_range


@dataclass
class Options:
    size: float | tuple[float, ...] | None


def error_of(size: float | tuple[float, ...] | None, **bounds: float) -> str:
    """Check one option, and return the error message; "" if it is within the bounds."""
    try:
        check_range(Options(size), "x.", ["size"], **bounds)  # type: ignore[arg-type] # bounds are no remedy
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        ({"at_least": 1}, [1, inf], [0, nan], "at least 1"),
        ({"above": 0}, [0.1], [0, nan], "above 0"),
        ({"at_least": 0, "at_most": 1}, [0, 1], [-0.1, 1.1, nan], "between 0 and 1"),
        ({"at_least": 0, "below": 1}, [0, 0.9], [-1, 1, nan], "at least 0 and below 1"),
        ({"above": 0, "at_most": 1}, [0.1, 1], [0, 2, nan], "above 0 and at most 1"),
    ],
)
def test_the_message_states_the_range(
    bounds: dict[str, float], inside: list[float], outside: list[float], words: str
) -> None:
    for size in inside:
        assert error_of(size, **bounds) == ""
    for size in outside:
        assert error_of(size, **bounds) == f"x.size is {size}, must be {words}"


def test_an_option_that_is_not_set_passes() -> None:
    assert error_of(None, at_least=1) == ""


def test_every_entry_of_a_tuple_is_checked() -> None:
    assert error_of((1, 2), at_least=1) == ""
    assert error_of((1, 0), at_least=1) == "x.size is [1, 0], every entry must be at least 1"


def test_a_remedy_ends_the_message() -> None:
    with pytest.raises(UserError, match=r"^x\.size is 0, must be above 0, or null for no limit$"):
        check_range(Options(0), "x.", ["size"], above=0, remedy=", or null for no limit")
