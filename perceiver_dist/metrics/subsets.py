"""Modality subsets: evaluation with some of a source's modalities, as if samples lacked the others."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

Subset = tuple[str, ...]
"""Modalities that the model sees; the others are masked."""


def modality_subsets(modalities: Sequence[str]) -> list[Subset]:
    """Return every non-empty subset, larger ones first: the set of all modalities comes first.

    Args:
        modalities: A source's modalities.
    """
    return [subset for size in range(len(modalities), 0, -1) for subset in combinations(modalities, size)]


def show_only(present: Mapping[str, Tensor], subset: Subset) -> dict[str, Tensor]:
    """Return presence flags with all modalities outside a subset marked as missing.

    Args:
        present: Modality -> (B,) bool.
        subset: Modalities whose flags are kept.

    Returns:
        Modality -> (B,) bool.
    """
    return {
        modality: flags if modality in subset else torch.zeros_like(flags)
        for modality, flags in present.items()
    }
