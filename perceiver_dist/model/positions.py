"""Position features of tokens: Fourier features of grids and of points, and fixed random orders of tokens.

Shapes: B batch, M tokens, P position channels, K frequency bands per axis.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perceiver_dist.modalities import ModalityInput, PointCloudInput, tokens


def position_channels(spec: ModalityInput) -> int:
    """Return the number of position channels P of a modality; 0 for points, whose positions are content.

    Fourier features have axes * (2K + 1) channels: K sines, K cosines and the raw position per axis.

    Args:
        spec: The modality's input.
    """
    if isinstance(spec, PointCloudInput):
        return 0
    if spec.position == "learned":
        return spec.position_channels
    return len(spec.grid) * (2 * spec.bands + 1)


def axis_features(spec: ModalityInput) -> list[Tensor]:
    """Return Fourier features along each axis of the modality's grid (paper, section 3.2).

    Positions are spaced evenly from -1 to 1 on each axis. The K frequencies f are spaced evenly from 1 to mu / 2, where
    mu is the input's max_frequency or the number of tokens on the axis. Computed in fp64, since in fp32 the phase
    pi * 112 * x of the highest ImageNet frequency would lose digits.

    Args:
        spec: The modality's input.

    Returns:
        (size, 2K + 1) fp32 for each axis, channels [x, sin(pi f x), cos(pi f x)]; empty for a point cloud.
    """
    if isinstance(spec, PointCloudInput):
        return []
    tables = []
    for size in spec.grid:
        positions = torch.linspace(-1, 1, size, dtype=torch.float64)[:, None]
        # size / 2 is the Nyquist frequency of a grid with `size` tokens on [-1, 1].
        highest = (spec.max_frequency or size) / 2
        phases = torch.pi * positions * torch.linspace(1, highest, spec.bands, dtype=torch.float64)
        tables.append(torch.cat([positions, phases.sin(), phases.cos()], dim=1).float())
    return tables


def fourier_features(spec: ModalityInput) -> Tensor:
    """Return the Fourier features of every token of the modality's grid.

    Args:
        spec: The modality's input.

    Returns:
        (M, P) fp32, tokens in row-major order of the grid, channels in the order of `axis_channels`; (M, 0) for a point
        cloud.
    """
    tables = axis_features(spec)
    if not tables:
        return torch.empty(tokens(spec), 0)
    places = torch.cartesian_prod(*(torch.arange(len(table)) for table in tables)).reshape(-1, len(tables))
    in_axis_order = torch.cat([table[place] for table, place in zip(tables, places.T, strict=True)], dim=1)
    return in_axis_order[:, torch.cat(axis_channels(tables)).argsort()]


def axis_channels(tables: Sequence[Tensor]) -> list[Tensor]:
    """Return the places of each axis' features among the channels of a token's position.

    A position holds the raw coordinates of all axes, then the sines of all axes, then the cosines.

    Args:
        tables: (size, 2K + 1) for each axis, from `axis_features`.

    Returns:
        (2K + 1,) int64 for each axis.
    """
    axes, bands = len(tables), tables[0].shape[1] // 2
    axis = torch.arange(axes, device=tables[0].device)[:, None]
    sines = axes + axis * bands + torch.arange(bands, device=tables[0].device)
    return list(torch.cat([axis, sines, sines + axes * bands], dim=1))


def separates_by_axis(spec: ModalityInput) -> bool:
    """Return whether a token's position features consist of one part per axis, as separable.py requires.

    Permuted tokens do not form a grid, and a learned position has no parts.

    Args:
        spec: The modality's input.
    """
    return spec.position == "fourier" and spec.permutation_seed is None and len(spec.grid) > 1


def point_features(points: Tensor, spec: PointCloudInput) -> Tensor:
    """Return the Fourier features of points at any coordinates (paper, section 4.3: 387 channels).

    The K frequencies f are spaced evenly from 1 to mu / 2. f * x is computed in fp64 and reduced by whole turns, so the
    sine can be computed in fp32: sin(pi * 1120 * x) is then accurate to fp32 for an fp32 coordinate x.

    Args:
        points: (B, M, 3), fp32 or fp64.
        spec: The modality's input.

    Returns:
        (B, M, 3 * (2K + 1)) in the dtype of `points`: coordinates, then sin(pi f x), then cos(pi f x), each axis by
        axis.
    """
    frequencies = torch.linspace(
        1, spec.max_frequency / 2, spec.bands, dtype=torch.float64, device=points.device
    )
    half_turns = points.double()[..., None] * frequencies
    phases = torch.pi * (half_turns - 2 * (half_turns / 2).round()).flatten(2).to(points.dtype)
    return torch.cat([points, phases.sin(), phases.cos()], dim=-1)


def token_order(spec: ModalityInput) -> Tensor:
    """Return the fixed random order of a modality's tokens (paper, section 4.1, permuted ImageNet).

    Args:
        spec: The modality's input, with a permutation_seed.

    Returns:
        (M,) int64 on the CPU: for each place, the row-major index of the token that is put there.
    """
    # Drawn on the CPU, since generators of other devices give other numbers for the same seed.
    generator = torch.Generator().manual_seed(spec.permutation_seed or 0)
    return torch.randperm(tokens(spec), generator=generator, device="cpu")
