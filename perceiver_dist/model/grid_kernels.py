"""Launching the Triton kernels of separable.py's attention (kernels/): scores live in registers, none are stored.

Shapes: B batch, N latents, R rows, W columns, M = R * W tokens, A feature channels. A grid of any number of axes is
treated as rows and columns: its last axis gives the columns, all others together the rows. With scaled features
k = rstd * u, row scores a and column scores b, the score of latent n and token (y, x) is

    s(n, y, x) = q(n) . k(y, x)  +  rstd(y, x) * (a(n, y) + b(n, x)).

A program holds a tile of latents by columns and walks over a piece of the rows. Its sums are added to those of other
tiles and pieces by a second kernel. kernels/tokens.py explains how numbers are split for the tensor cores and how tokens
are packed for them, kernels/forward.py why the loop over rows is short.

Precision follows the run. `products` is the dtype in which the caller would multiply: fp32 keeps 24 bits of both factors,
bfloat16 keeps 16, except for the weights and for features that do not fit beside the positions (more than 55), of
which it keeps 8, as dense attention does of everything.

Determinism. Results are a function of the arguments alone, on every card of one kind and after every restart, as exact
resuming requires: no atomics, and what sets the order of a sum (columns of a tile, rows of a piece) follows from the
shapes. Triton's autotuner chooses only what does not: how many latents share a program, its warps, and how many loads are
under way. It times the choices on the card, once per grid, and keeps the result in Triton's cache on disk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
import triton
from torch import Tensor

from perceiver_dist.model.kernels import backward as backward_kernel
from perceiver_dist.model.kernels import combine as combine_kernel
from perceiver_dist.model.kernels import forward as forward_kernel
from perceiver_dist.model.kernels import statistics as statistics_kernel
from perceiver_dist.model.kernels import tokens as token_kernels
from perceiver_dist.model.kernels.tokens import LEAD_BLOCK, LOG2_E, SLOTS

_LONGEST_TAIL = 64
"""Channels of the packed tokens' tail (kernels/tokens.py): 55 features, a one and the slots."""
_LEAD_CHUNK = 256
"""Channels of the lead that a program sums: with 64 latents and 8 warps 64 registers per thread."""
_PROGRAMS = 4 * 132
"""Programs to aim at, by cutting the rows into pieces: four for each multiprocessor of an H100 or H200. It is a
constant, so that sums do not depend on the card."""
_LEAST_BLOCKS = 4
"""Blocks of 8 rows in a piece: less, and reading and writing what is shared by a program's rows costs as much."""
_STATISTICS_LATENTS = 32
"""Latents in a step of the kernel for mean and rstd. They are summed over, so this is not tuned."""


@dataclass(frozen=True)
class Layout:
    """Sizes of tiles and packed arrays: a function of shapes and precision alone.

    Args:
        batch: Samples B.
        latents: Latents N.
        rows: Rows R.
        columns: Columns W.
        channels: Feature channels A.
        products: fp32, bfloat16, or fp64 (in Triton's interpreter).
    """

    batch: int
    latents: int
    rows: int
    columns: int
    channels: int
    products: torch.dtype

    @property
    def parts(self) -> int:
        """Bfloat16 numbers that make up a number."""
        return {torch.float64: 1, torch.float32: 3, torch.bfloat16: 2}[self.products]

    @property
    def element(self) -> torch.dtype:
        """Dtype of packed arrays."""
        return torch.float64 if self.products == torch.float64 else torch.bfloat16

    @property
    def lead_channels(self) -> int:
        """Features that do not fit beside the positions: none, or all but the last two."""
        return self.channels - 2 if self.channels + 1 + SLOTS.value > _LONGEST_TAIL else 0

    @property
    def tail_width(self) -> int:
        """Channels of the tail: a power of 2, at least the 16 of a product."""
        return max(16, triton.next_power_of_2(self.channels - self.lead_channels + 1 + SLOTS.value))

    @property
    def lead_width(self) -> int:
        """Channels of the lead, rounded up to whole blocks."""
        return triton.cdiv(self.lead_channels, LEAD_BLOCK.value) * LEAD_BLOCK.value

    @property
    def tile_columns(self) -> int:
        """Columns of a tile: 32, or 16 if more than a quarter of the tiles would be empty."""
        return 32 if triton.cdiv(self.columns, 32) * 32 <= 1.25 * self.columns else 16

    @property
    def tiles(self) -> int:
        """Tiles T of columns."""
        return triton.cdiv(self.columns, self.tile_columns)

    @property
    def rows_per_piece(self) -> int:
        """Rows of a piece, a multiple of 8."""
        blocks = triton.cdiv(self.rows, SLOTS.value)
        programs = self.batch * triton.cdiv(self.latents, 64) * self.tiles
        wanted = min(triton.cdiv(_PROGRAMS, programs), triton.cdiv(blocks, _LEAST_BLOCKS))
        return triton.cdiv(blocks, wanted) * SLOTS.value

    @property
    def pieces(self) -> int:
        """Pieces S of rows."""
        return triton.cdiv(self.rows, self.rows_per_piece)

    @cached_property
    def tile_options(self) -> dict[str, int]:
        """What all kernels that visit scores are compiled for."""
        return {
            "tile_columns": self.tile_columns,
            "tail_width": self.tail_width,
            "lead_width": self.lead_width,
            "parts": self.parts,
            "lead_parts": 1 if self.products == torch.bfloat16 else self.parts,
        }


def forward(
    query: Tensor, features: Tensor, rstd: Tensor, row_scores: Tensor, column_scores: Tensor, products: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sums over the grid with the softmax of the scores as weights w.

    Args:
        query: (B, N, A), fp32, like all other arrays; fp64 if `products` is.
        features: (B, R * W, A).
        rstd: (B, R * W).
        row_scores: (B, N, R).
        column_scores: (B, N, W).
        products: Precision, see the head of this file.

    Returns:
        The sum of w * rstd * features, (B, N, A); the log-sum-exp of the scores, (B, N); the sums of w * rstd of each
        row, (B, N, R), and of each column, (B, N, W).
    """
    query, features, rstd, row_scores, column_scores = _contiguous(query, features, rstd, row_scores, column_scores)
    layout = Layout(*query.shape[:2], row_scores.shape[-1], column_scores.shape[-1], query.shape[-1], products)
    sums = _TileSums(layout, query)
    _attend[_programs(layout)](
        query, _lead_query(query * LOG2_E.value, layout), row_scores, column_scores, *_pack(features, rstd, layout),
        *sums.arrays, sums.shifts, *_counts(layout), **layout.tile_options,
    )  # fmt: skip
    results = tuple(torch.empty_like(array) for array in (query, query[..., 0], row_scores, column_scores))
    sums.combine(*results, weighted=True)
    return results


def backward(
    query: Tensor, features: Tensor, rstd: Tensor, row_scores: Tensor, column_scores: Tensor, products: torch.dtype,
    normaliser: Tensor, shift: Tensor, feature_grad: Tensor, row_grads: Tensor, column_grads: Tensor,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the gradients of `forward`'s arguments, except those of the features.

    Args:
        query: As for `forward`.
        features: As for `forward`.
        rstd: As for `forward`.
        row_scores: As for `forward`.
        column_scores: As for `forward`.
        products: As for `forward`.
        normaliser: (B, N), from `forward`.
        shift: (B, N), dO . O - dL, which is subtracted from dP (factored.py).
        feature_grad: (B, N, A), gradient of the sum of features.
        row_grads: (B, N, R), gradient of the sums of rows.
        column_grads: (B, N, W), gradient of the sums of columns.
        statistics: Whether gradients of the tokens' mean and rstd are needed.

    Returns:
        Gradients of query, row scores and column scores. Then two sums over latents, each (B, R * W) or None, that give
        the gradients of mean and rstd: of dS * q_A + w * dO_A, where q_A is the last channel, and of s * dS + w * dP.
    """
    query, features, rstd, row_scores, column_scores = _contiguous(query, features, rstd, row_scores, column_scores)
    normaliser, shift, feature_grad, row_grads, column_grads = _contiguous(
        normaliser, shift, feature_grad, row_grads, column_grads
    )
    layout = Layout(*query.shape[:2], row_scores.shape[-1], column_scores.shape[-1], query.shape[-1], products)
    shared = (
        query, _lead_query(query * LOG2_E.value, layout), row_scores, column_scores, normaliser,
        feature_grad, _lead_query(feature_grad, layout), row_grads, column_grads, shift, *_pack(features, rstd, layout),
    )  # fmt: skip
    sums = _TileSums(layout, query)
    _attend_backward[_programs(layout)](*shared, *sums.arrays, *_counts(layout), **layout.tile_options)
    query_grad, *grads = (torch.empty_like(array) for array in (query, row_scores, column_scores))
    sums.combine(query_grad, None, *grads, weighted=False)
    mean_sums, rstd_sums = None, None
    if statistics:
        mean_sums, rstd_sums = torch.empty_like(rstd), torch.empty_like(rstd)
        statistics_kernel.sum_over_latents[layout.tiles * layout.rows, layout.batch](
            *shared, mean_sums, rstd_sums, *_counts(layout)[:-2],
            **layout.tile_options, tile_latents=_STATISTICS_LATENTS,
        )  # fmt: skip
    return query_grad, *grads, mean_sums, rstd_sums


def _fitting(configs: list[triton.Config], arguments: dict[str, Any], **options: Any) -> list[triton.Config]:
    """Return the choices for a lead of this width: without one, a chunk of 16 that no code uses."""
    width = options["lead_width"]
    return [config for config in configs if (config.kwargs["lead_chunk"] > 16) == (width > 0)]


def _tuned(kernel: Any, choices: list[tuple[int, int, int, int]]) -> Any:
    """Return the kernel with an autotuner over (latents of a program, chunk of the lead, warps, stages of loads)."""
    configs = [
        triton.Config({"tile_latents": latents, "lead_chunk": chunk}, num_warps=warps, num_stages=stages)
        for latents, chunk, warps, stages in choices
    ]
    key = ["latents", "rows", "columns", "channels", "pieces", "parts"]
    tune = triton.autotune(configs, key, prune_configs_by={"early_config_prune": _fitting}, cache_results=True)
    return tune(kernel)


_INTERPRETED = triton.knobs.runtime.interpret
_attend = _tuned(forward_kernel.attend, [(64, 16, 4, 1), (64, 256, 8, 2)])
_attend_backward = _tuned(backward_kernel.attend_backward, [(64, 16, 4, 1), (64, 256, 8, 2)])


def _programs(layout: Layout) -> Callable[[dict[str, int]], tuple[int, int]]:
    """Return the function from a choice of sizes to the grid of programs."""

    def programs(options: dict[str, int]) -> tuple[int, int]:
        latent_tiles = triton.cdiv(layout.latents, options["tile_latents"])
        chunks = max(1, triton.cdiv(layout.lead_width, options["lead_chunk"]))
        return latent_tiles * chunks * layout.tiles * layout.pieces, layout.batch

    return programs


def _counts(layout: Layout) -> tuple[int, ...]:
    """Return the sizes that kernels get at run time, in the order of their arguments."""
    return (
        layout.latents, layout.rows, layout.columns, layout.channels, layout.lead_channels,
        layout.tiles, layout.pieces, layout.rows_per_piece,
    )  # fmt: skip


def _contiguous(*arrays: Tensor) -> tuple[Tensor, ...]:
    return tuple(array.contiguous() for array in arrays)


def _pack(features: Tensor, rstd: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return tail, lead and scale, as kernels/tokens.py describes them."""
    options = layout.tile_options
    shape = (layout.batch, layout.tiles, layout.rows)
    tail, lead = (
        features.new_empty((*shape, options[f"{parts}"], layout.tile_columns, width), dtype=layout.element)
        for parts, width in (("parts", layout.tail_width), ("lead_parts", layout.lead_width))
    )
    scale = rstd.new_empty((*shape, layout.tile_columns))
    token_kernels.pack[layout.tiles * layout.rows, layout.batch](
        features, rstd, tail, lead, scale, layout.rows, layout.columns, layout.channels, layout.lead_channels, **options
    )
    return tail, lead, scale


def _lead_query(query: Tensor, layout: Layout) -> Tensor:
    """Return the part of a query that meets the lead, in parts: (B, N, lead_parts, lead_width)."""
    rest = query[..., : layout.lead_channels]
    parts = []
    for _ in range(layout.tile_options["lead_parts"]):
        parts.append(rest.to(layout.element))
        rest = rest - parts[-1]
    return F.pad(torch.stack(parts, dim=2), (0, layout.lead_width - layout.lead_channels))


class _TileSums:
    """What a kernel sums for each tile and piece, and their sum."""

    def __init__(self, layout: Layout, like: Tensor) -> None:
        batch, latents = layout.batch, layout.latents
        by_place = (batch, layout.pieces, layout.tiles, latents)
        self.layout = layout
        self.arrays = (
            like.new_empty((*by_place, layout.tail_width)),
            like.new_empty((*by_place, layout.lead_width)),
            like.new_empty((batch, layout.tiles, latents, layout.rows)),
            like.new_empty((batch, layout.pieces, latents, layout.columns)),
        )
        self.shifts = like.new_empty(by_place)

    def combine(
        self, feature_sum: Tensor, normaliser: Tensor | None, by_row: Tensor, by_column: Tensor, weighted: bool
    ) -> None:
        """Write the sums over all tiles and pieces, see kernels/combine.py."""
        layout = self.layout
        block = combine_kernel.BLOCK.value
        tasks = 1 + layout.lead_width // block + triton.cdiv(layout.rows, block) + layout.tiles
        combine_kernel.combine[triton.cdiv(layout.latents, combine_kernel.LATENTS.value), tasks, layout.batch](
            *self.arrays, self.shifts, feature_sum, normaliser if normaliser is not None else self.shifts,
            by_row, by_column, *_counts(layout),
            tile_columns=layout.tile_columns, tail_width=layout.tail_width, lead_width=layout.lead_width,
            places=triton.next_power_of_2(layout.tiles * layout.pieces), weighted=weighted,
        )  # fmt: skip
