"""Subsets of a source's modalities: what an evaluation shows the model of each sample."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

Subset = tuple[str, ...]
"""Modalities that are shown; the others are hidden."""


def modality_subsets(modalities: Sequence[str]) -> list[Subset]:
    """Return all modalities first, then every proper subset that is not empty, larger ones first.

    Args:
        modalities: A source's modalities.
    """
    return [subset for size in range(len(modalities), 0, -1) for subset in combinations(modalities, size)]


def show_only(present: Mapping[str, Tensor], subset: Subset) -> dict[str, Tensor]:
    """Return presence flags by which the model sees a subset of the modalities.

    Args:
        present: Modality -> (B,) bool.
        subset: The modalities that are left as they are.

    Returns:
        Modality -> (B,) bool.
    """
    return {
        modality: flags if modality in subset else torch.zeros_like(flags)
        for modality, flags in present.items()
    }
