"""Where tokens are: Fourier features of grids, axis by axis and together, of points, and fixed orders of tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from perceiver_dist.modalities import ModalityInput, PointCloudInput, tokens


def position_channels(spec: ModalityInput) -> int:
    """Position channels P of a modality; 0 for points, whose positions are content.

    Args:
        spec: The modality's input.

    Returns:
        Number of channels. Of Fourier features axes * (2K + 1): K sines, K cosines and the raw position per axis.
    """
    if isinstance(spec, PointCloudInput):
        return 0
    if spec.position == "learned":
        return spec.position_channels
    return len(spec.grid) * (2 * spec.bands + 1)


def axis_features(spec: ModalityInput) -> list[Tensor]:
    """Position features along each axis of the modality's grid (paper 3.2).

    Positions run from -1 to 1 on each axis; the K frequencies f are linear from 1 to mu / 2, mu being the
    input's max_frequency or the number of tokens on the axis. Computed in fp64: sin(pi * 112 * x) needs it.

    Args:
        spec: The modality's input.

    Returns:
        (size, 2K + 1) fp32 for each axis, channels [x, sin(pi f x), cos(pi f x)]; none for a point cloud.
    """
    if isinstance(spec, PointCloudInput):
        return []
    tables = []
    for size in spec.grid:
        positions = torch.linspace(-1, 1, size, dtype=torch.float64)[:, None]
        highest = (spec.max_frequency or size) / 2
        phases = torch.pi * positions * torch.linspace(1, highest, spec.bands, dtype=torch.float64)
        tables.append(torch.cat([positions, phases.sin(), phases.cos()], dim=1).float())
    return tables


def fourier_features(spec: ModalityInput) -> Tensor:
    """Position features of every token of the modality's grid, made of those along its axes.

    Args:
        spec: The modality's input.

    Returns:
        (M, P) fp32, tokens in row-major order of the grid, channels as `axis_channels` says; of a point cloud (M, 0).
    """
    tables = axis_features(spec)
    if not tables:
        return torch.empty(tokens(spec), 0)
    places = torch.cartesian_prod(*(torch.arange(len(table)) for table in tables)).reshape(-1, len(tables))
    in_axis_order = torch.cat([table[place] for table, place in zip(tables, places.T, strict=True)], dim=1)
    return in_axis_order[:, torch.cat(axis_channels(tables)).argsort()]


def axis_channels(tables: Sequence[Tensor]) -> list[Tensor]:
    """Where the features along each axis are among the channels of a token's position.

    Args:
        tables: (size, 2K + 1) of each axis, from `axis_features`.

    Returns:
        (2K + 1,) int64 for each axis: positions have the x of all axes, then all sines, then all cosines, each axis
        by axis.
    """
    axes, bands = len(tables), tables[0].shape[1] // 2
    axis = torch.arange(axes, device=tables[0].device)[:, None]
    sines = axes + axis * bands + torch.arange(bands, device=tables[0].device)
    return list(torch.cat([axis, sines, sines + axes * bands], dim=1))


def separates_by_axis(spec: ModalityInput) -> bool:
    """Whether a token's position is a row, a column, ... of a grid, each with features of its own.

    Args:
        spec: The modality's input.
    """
    return spec.position == "fourier" and spec.permutation_seed is None and len(spec.grid) > 1


def point_features(points: Tensor, spec: PointCloudInput) -> Tensor:
    """Fourier features of points wherever they are (paper 4.3: 387 channels, the coordinates among them).

    The K frequencies f are linear from 1 to mu / 2. f * x is made in fp64 and whole turns are taken off it there, so
    that the sine itself may be computed in fp32: sin(pi * 1120 * x) is exact to fp32 for the fp32 coordinate x.

    Args:
        points: (B, M, 3), fp32 or fp64.
        spec: The input.

    Returns:
        (B, M, 3 * (2K + 1)) in the dtype of `points`, channels [x, sin(pi f x), cos(pi f x)], each axis by axis.
    """
    frequencies = torch.linspace(
        1, spec.max_frequency / 2, spec.bands, dtype=torch.float64, device=points.device
    )
    half_turns = points.double()[..., None] * frequencies
    phases = torch.pi * (half_turns - 2 * (half_turns / 2).round()).flatten(2).to(points.dtype)
    return torch.cat([points, phases.sin(), phases.cos()], dim=-1)


def token_order(spec: ModalityInput) -> Tensor:
    """The fixed random order that a modality's tokens are put into (paper 4.1, permuted ImageNet).

    Args:
        spec: The modality's input, with a permutation_seed.

    Returns:
        (M,) int64 on the CPU: which token of the grid, in row-major order, comes at each place.
    """
    generator = torch.Generator().manual_seed(spec.permutation_seed or 0)
    return torch.randperm(tokens(spec), generator=generator, device="cpu")
