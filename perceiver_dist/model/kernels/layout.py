"""Sizes of tiles and packed arrays: a function of shapes and precision alone, since they set the order of sums."""

from dataclasses import dataclass

import torch
import triton

from perceiver_dist.model.kernels.tokens import LEAD_BLOCK, SLOTS

_LONGEST_TAIL = 64
"""Channels of the packed tokens' tail (tokens.py) at most: 55 features, a one and the slots."""
_LEAD_CHUNK = 128
"""Channels of the lead that a program sums: with 64 latents and 8 warps 32 registers per thread. 256 channels spilled
registers (docs/experiments.md); each further chunk computes the scores again."""
_PROGRAMS = 4 * 132
"""Programs to aim at, by cutting the rows into pieces: four for each multiprocessor of an H100 or H200. A constant, so
that sums do not depend on the card."""
_PROGRAM_LATENTS = 64
"""Latents of a program that this counts with, whatever the autotuner chooses."""
_LEAST_BLOCKS = 4
"""Blocks of 8 rows in a piece. With fewer, what a program does once would cost as much as its rows."""
_PARTS = {torch.float64: 1, torch.float32: 3, torch.bfloat16: 2, torch.float16: 2}
"""Parts of a number by the dtype of the run's products. fp64 is not split; it is for Triton's interpreter."""


@dataclass(frozen=True)
class Layout:
    """Sizes of tiles and packed arrays.

    Attributes:
        batch: Samples B.
        latents: Latents N.
        rows: Rows R.
        columns: Columns W.
        channels: Feature channels A.
        products: Dtype of the run's matrix products.
    """

    batch: int
    latents: int
    rows: int
    columns: int
    channels: int
    products: torch.dtype

    @property
    def element(self) -> torch.dtype:
        """Dtype of packed arrays."""
        return torch.float64 if self.products == torch.float64 else torch.bfloat16

    @property
    def parts(self) -> int:
        """Parts of a number in the tail."""
        return _PARTS[self.products]

    @property
    def lead_parts(self) -> int:
        """Parts of a number in the lead: in bf16 runs one, as in dense attention."""
        return 1 if self.parts == 2 else self.parts

    @property
    def lead_channels(self) -> int:
        """Features in the lead: none, or all but the last two."""
        return self.channels - 2 if self.channels + 1 + SLOTS.value > _LONGEST_TAIL else 0

    @property
    def lead_width(self) -> int:
        """Channels of the lead, in whole blocks."""
        return triton.cdiv(self.lead_channels, LEAD_BLOCK.value) * LEAD_BLOCK.value

    @property
    def lead_chunk(self) -> int:
        """Channels of the lead that a program sums; without a lead the least that compiles."""
        return _LEAD_CHUNK if self.lead_width else 16

    @property
    def tail_width(self) -> int:
        """Channels of the tail: a power of 2, at least the 16 of a product."""
        return max(16, triton.next_power_of_2(self.channels - self.lead_channels + 1 + SLOTS.value))

    @property
    def tile_columns(self) -> int:
        """Columns of a tile: 32, or 16 where tiles of 32 would be empty by more than a quarter of the grid."""
        return 32 if triton.cdiv(self.columns, 32) * 32 <= 1.25 * self.columns else 16

    @property
    def tiles(self) -> int:
        """Tiles T of columns."""
        return triton.cdiv(self.columns, self.tile_columns)

    @property
    def rows_per_piece(self) -> int:
        """Rows of a piece, a multiple of 8. Few programs get smaller pieces."""
        blocks = triton.cdiv(self.rows, SLOTS.value)
        programs = self.batch * triton.cdiv(self.latents, _PROGRAM_LATENTS) * self.tiles
        wanted = min(triton.cdiv(_PROGRAMS, programs), triton.cdiv(blocks, _LEAST_BLOCKS))
        return triton.cdiv(blocks, wanted) * SLOTS.value

    @property
    def pieces(self) -> int:
        """Pieces S of rows."""
        return triton.cdiv(self.rows, self.rows_per_piece)

    @property
    def token_options(self) -> dict[str, int]:
        """What kernels that read packed tokens are compiled for."""
        return {
            name: getattr(self, name)
            for name in ("tile_columns", "tail_width", "lead_width", "parts", "lead_parts")
        }

    @property
    def counts(self) -> tuple[int, ...]:
        """The sizes that kernels get at run time, in the order of their arguments."""
        return (
            self.latents, self.rows, self.columns, self.channels, self.lead_channels,
            self.tiles, self.pieces, self.rows_per_piece,
        )  # fmt: skip
