"""Range check of option dataclasses, with one wording for all messages."""

from collections.abc import Iterable

from perceiver_dist.errors import UserError


def check_range(
    options: object,
    prefix: str,
    names: Iterable[str],
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    remedy: str = "",
) -> None:
    """Check that options lie within a range. An option that is None is not set and passes; NaN never passes.

    Called from `__post_init__` on fields with plain types. With `Annotated[int, annotated_types.Ge(1)]` jsonargparse
    4.53 would delegate the check to pydantic: four lines and a link in place of one line, and `--help` would show the
    type as `Annotated[int, Ge(ge=1)]`.

    Args:
        options: The dataclass instance.
        prefix: Text before the name in messages, such as "train." or "--".
        names: Fields to check. Of a list or tuple, every entry is checked.
        at_least: Inclusive lower bound.
        above: Exclusive lower bound.
        at_most: Inclusive upper bound.
        below: Exclusive upper bound.
        remedy: Text at the end of the message, for what the bounds do not say.

    Raises:
        UserError: An option is outside the range: `train.steps is 0, must be at least 1`.
    """
    for name in names:
        value = getattr(options, name)
        entries = value if isinstance(value, list | tuple) else [value]
        for number in entries:
            # Each comparison is written so that NaN, which compares false to everything, fails it.
            within = number is None or (
                (at_least is None or number >= at_least)
                and (above is None or number > above)
                and (at_most is None or number <= at_most)
                and (below is None or number < below)
            )
            if not within:
                shown = f"{[*entries]}, every entry" if entries is value else f"{value},"
                raise UserError(
                    f"{prefix}{name} is {shown} must be {_range_text(at_least, above, at_most, below)}{remedy}"
                )


def _range_text(
    at_least: float | None, above: float | None, at_most: float | None, below: float | None
) -> str:
    """Return a range in words: "at least 1", "between 0 and 1", "at least 0 and below 1"."""
    if at_least is not None and at_most is not None:
        return f"between {at_least} and {at_most}"
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    return " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
