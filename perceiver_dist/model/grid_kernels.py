"""Launching the Triton kernels of separable.py's attention (kernels/): scores live in registers, none are stored.

Shapes: B batch, N latents, R rows, W columns, M = R * W tokens, A feature channels. A grid of any number of axes is
treated as rows and columns: its last axis gives the columns, all others together the rows. With row scores a and column
scores b, the score of latent n and token (y, x) is

    s(n, y, x) = rstd(y, x) * (q(n) . u(y, x)  +  a(n, y)  +  b(n, x)).

A program holds a tile of latents by columns and walks over a piece of the rows; a second kernel adds the sums of all
tiles and pieces. kernels/tokens.py says how numbers are split for the tensor cores and tokens packed for them,
kernels/forward.py why the loop over rows is short. This was written without a GPU: docs/experiments.md has what the
assembler reports and an estimate of the time, and `python jobs/benchmark.py kernels` measures it.

Precision follows the run, by `products`, the dtype in which the run multiplies matrices. In fp32 runs products keep
24 bits of both factors. In bf16 runs they keep 16, but 8 of the weights, and 8 of all features but the last two if
there are more than 55. Dense attention keeps 8 of everything. Sums are in fp32, in two levels.

Determinism. Resuming must be exact, so results may depend on the arguments alone. There are no atomics, and what sets
the order of a sum (columns of a tile, rows of a piece) follows from the shapes (kernels/layout.py). Triton's autotuner
is left to choose what does not: how many latents share a program, its warps, the registers of a thread, and how many
loads are under way. It times each choice on the card that runs it, once for each grid, and keeps the times in Triton's
cache folder. Ranks may choose differently and still get the same bits.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
import triton
from torch import Tensor

from perceiver_dist.model.kernels import backward as backward_kernels
from perceiver_dist.model.kernels import combine as combine_kernels
from perceiver_dist.model.kernels import forward as forward_kernels
from perceiver_dist.model.kernels import statistics as statistics_kernels
from perceiver_dist.model.kernels import tokens as token_kernels
from perceiver_dist.model.kernels.layout import Layout

STATISTICS = {"tile_latents": 64, "num_warps": 8, "num_stages": 1}
"""Latents in a step of the kernel for mean and rstd, and its warps. It sums over latents, so this is not tuned: with 8
warps a thread needs 120 registers, with 4 more than 200."""


class Choice(NamedTuple):
    """What the autotuner chooses. None of it changes the order of a sum."""

    tile_latents: int
    warps: int
    stages: int
    registers: int | None = None


CHOICES = (Choice(64, 4, 1), Choice(64, 4, 1, 168), Choice(64, 4, 3), Choice(128, 8, 1))
"""An instruction of Hopper's tensor cores takes 64 rows, by 4 warps. At most 168 registers per thread let three
programs of 4 warps share a multiprocessor instead of two."""
WIDE_CHOICES = (Choice(64, 8, 1), Choice(64, 8, 2))
"""For features with a lead, whose sums take registers as well: 8 warps share them."""


def forward(
    query: Tensor, features: Tensor, rstd: Tensor, row_scores: Tensor, column_scores: Tensor, products: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return sums over the grid with the softmax of the scores as weights w.

    Args:
        query: (B, N, A), fp32, like all other arrays; fp64 if `products` is.
        features: (B, R * W, A), u.
        rstd: (B, R * W).
        row_scores: (B, N, R).
        column_scores: (B, N, W).
        products: Dtype in which the run multiplies matrices: fp32, bf16 or fp16, which is treated as bf16. fp64 only in
            Triton's interpreter.

    Returns:
        The sum of w * rstd * u, (B, N, A); the log-sum-exp of the scores, (B, N); the sums of w * rstd of each row,
        (B, N, R), and of each column, (B, N, W).
    """
    arrays = _contiguous(query, features, rstd, row_scores, column_scores)
    query, features, rstd, row_scores, column_scores = arrays
    layout = _layout(query, row_scores, column_scores, products)
    sums = _Sums(layout, like=query)
    _attend[layout.lead_width > 0][_programs(layout)](
        query, _lead_query(query, token_kernels.LOG2_E.value, layout), row_scores, column_scores,
        *_pack(features, rstd, layout), *sums.arrays, sums.shifts,
        *layout.counts, **layout.token_options, lead_chunk=layout.lead_chunk,
    )  # fmt: skip
    feature_sum, normaliser = torch.empty_like(query), torch.empty_like(query[..., 0])
    row_sums, column_sums = torch.empty_like(row_scores), torch.empty_like(column_scores)
    sums.combine(feature_sum, normaliser, row_sums, column_sums, weighted=True)
    return feature_sum, normaliser, row_sums, column_sums


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
    arrays = _contiguous(query, features, rstd, row_scores, column_scores)
    query, features, rstd, row_scores, column_scores = arrays
    gradients = _contiguous(normaliser, shift, feature_grad, row_grads, column_grads)
    normaliser, shift, feature_grad, row_grads, column_grads = gradients
    layout = _layout(query, row_scores, column_scores, products)
    shared = (
        query, _lead_query(query, token_kernels.LOG2_E.value, layout), row_scores, column_scores, normaliser,
        feature_grad, _lead_query(feature_grad, 1.0, layout), row_grads, column_grads, shift,
        *_pack(features, rstd, layout),
    )  # fmt: skip
    sums = _Sums(layout, like=query)
    _attend_backward[layout.lead_width > 0][_programs(layout)](
        *shared, *sums.arrays, *layout.counts, **layout.token_options, lead_chunk=layout.lead_chunk
    )
    query_grad = torch.empty_like(query)
    row_score_grads, column_score_grads = torch.empty_like(row_scores), torch.empty_like(column_scores)
    sums.combine(query_grad, sums.shifts, row_score_grads, column_score_grads, weighted=False)
    if not statistics:
        return query_grad, row_score_grads, column_score_grads, None, None
    mean_sums, rstd_sums = torch.empty_like(rstd), torch.empty_like(rstd)
    latents, rows, columns, channels, lead_channels, tiles, *_ = layout.counts
    statistics_kernels.sum_over_latents[tiles * rows, layout.batch](
        *shared, mean_sums, rstd_sums, latents, rows, columns, channels, lead_channels, tiles,
        **layout.token_options, **STATISTICS,
    )  # fmt: skip
    return query_grad, row_score_grads, column_score_grads, mean_sums, rstd_sums


def _tuned(kernel: Any, choices: Sequence[Choice]) -> Any:
    """Return the kernel with an autotuner."""
    if triton.knobs.runtime.interpret:
        choices = choices[:1]  # There is nothing to time.
    configs = [
        triton.Config(
            {"tile_latents": choice.tile_latents},
            num_warps=choice.warps, num_stages=choice.stages, maxnreg=choice.registers,
        )
        for choice in choices
    ]  # fmt: skip
    grid = ["latents", "rows", "columns", "channels", "pieces", "parts"]
    return triton.autotune(configs, key=grid, cache_results=True)(kernel)


# By whether the features have a lead.
_attend, _attend_backward = (
    {wide: _tuned(kernel, choices) for wide, choices in ((False, CHOICES), (True, WIDE_CHOICES))}
    for kernel in (forward_kernels.attend, backward_kernels.attend_backward)
)


def _programs(layout: Layout) -> Callable[[dict[str, int]], tuple[int, int]]:
    """Return the function from the autotuner's choice to the number of programs."""
    others = max(1, triton.cdiv(layout.lead_width, layout.lead_chunk)) * layout.tiles * layout.pieces
    return lambda chosen: (triton.cdiv(layout.latents, chosen["tile_latents"]) * others, layout.batch)


def _layout(query: Tensor, row_scores: Tensor, column_scores: Tensor, products: torch.dtype) -> Layout:
    batch, latents, channels = query.shape
    return Layout(batch, latents, row_scores.shape[-1], column_scores.shape[-1], channels, products)


def _contiguous(*arrays: Tensor) -> tuple[Tensor, ...]:
    return tuple(array.contiguous() for array in arrays)


def _pack(features: Tensor, rstd: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return tail, lead and scale, which kernels/tokens.py describes."""
    shape = (layout.batch, layout.tiles, layout.rows)
    tail = features.new_empty(
        (*shape, layout.parts, layout.tile_columns, layout.tail_width), dtype=layout.element
    )
    lead = features.new_empty(
        (*shape, layout.lead_parts, layout.tile_columns, layout.lead_width), dtype=layout.element
    )
    scale = rstd.new_empty((*shape, layout.tile_columns))
    token_kernels.pack[layout.tiles * layout.rows, layout.batch](
        features, rstd, tail, lead, scale,
        layout.rows, layout.columns, layout.channels, layout.lead_channels, **layout.token_options,
    )  # fmt: skip
    return tail, lead, scale


def _lead_query(query: Tensor, factor: float, layout: Layout) -> Tensor:
    """Return factor times the part of a query that meets the lead, in parts: (B, N, lead_parts, lead_width)."""
    shape = (*query.shape[:2], layout.lead_parts, layout.lead_width)
    if not layout.lead_width:
        return query.new_empty(shape, dtype=layout.element)
    rest = query[..., : layout.lead_channels] * factor
    parts = []
    for _ in range(layout.lead_parts):
        parts.append(rest.to(layout.element))
        rest = rest - parts[-1]
    return F.pad(torch.stack(parts, dim=2), (0, layout.lead_width - layout.lead_channels))


class _Sums:
    """What a kernel sums by tile and piece, and the sums over all of them."""

    def __init__(self, layout: Layout, like: Tensor) -> None:
        by_place = (layout.batch, layout.pieces, layout.tiles, layout.latents)
        self.layout = layout
        self.shifts = like.new_empty(by_place)
        self.arrays = (
            like.new_empty((*by_place, layout.tail_width)),
            like.new_empty((*by_place, layout.lead_width)),
            like.new_empty((layout.batch, layout.tiles, layout.latents, layout.rows)),
            like.new_empty((layout.batch, layout.pieces, layout.latents, layout.columns)),
        )

    def combine(
        self, feature_sum: Tensor, normaliser: Tensor, row_sums: Tensor, column_sums: Tensor, weighted: bool
    ) -> None:
        """Write the sums over all tiles and pieces; `normaliser` only if `weighted`. See kernels/combine.py."""
        layout, block = self.layout, combine_kernels.BLOCK.value
        tasks = 1 + layout.lead_width // block + triton.cdiv(layout.rows, block) + layout.tiles
        programs = (triton.cdiv(layout.latents, combine_kernels.LATENTS.value), tasks, layout.batch)
        combine_kernels.combine[programs](
            *self.arrays, self.shifts, feature_sum, normaliser, row_sums, column_sums, *layout.counts,
            tile_columns=layout.tile_columns, tail_width=layout.tail_width, lead_width=layout.lead_width,
            places=triton.next_power_of_2(layout.tiles * layout.pieces), weighted=weighted,
        )  # fmt: skip
