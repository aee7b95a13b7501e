"""Amounts of resources of a cluster, such as CPUs and GPUs, and their text."""

from collections.abc import Iterable

Bundle = dict[str, float]
"""Resources that are needed together on one node."""

_SHOWN = {"CPU": "CPU", "GPU": "GPU", "memory": "GiB of memory"}
"""Resources that texts name, in this order. Ray has others, which mark nodes."""
_LEAST = 1e-3
"""Smaller amounts are not shown: Ray counts in ten-thousandths, and sums of them are not exact."""


def total_of(bundles: Iterable[Bundle]) -> Bundle:
    """Return the sum of some bundles by resource.

    Args:
        bundles: Resources.
    """
    total: Bundle = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return total


def text_of(resources: Bundle) -> str:
    """Return resources as text, such as "4 CPUs and 1 GPU"; "" if there are none that are shown.

    Args:
        resources: Amounts by resource; memory in bytes.
    """
    return " and ".join(
        _amount(resources[name], unit) for name, unit in _SHOWN.items() if resources.get(name) is not None
    )


def shown_part(resources: Bundle, kinds: Iterable[str]) -> Bundle:
    """Return those of the resources that are worth showing: of some kinds, and more than nothing.

    Args:
        resources: Amounts by resource.
        kinds: Names of resources.
    """
    return {name: resources[name] for name in kinds if name in _SHOWN and resources.get(name, 0) > _LEAST}


def _amount(amount: float, unit: str) -> str:
    if unit.startswith("GiB"):
        return f"{amount / 2**30:.3g} {unit}"
    return f"{amount:g} {unit}{'' if amount == 1 else 's'}"
