"""Which samples make up a unit: a pure function of (seed, source, unit number), computed when needed.

The idea. A unit is one micro-batch. Imagine every epoch's samples written down in a shuffled order, and these
epochs one after another in one endless line: unit u is the samples at positions [u * unit_size, (u+1) * unit_size)
of that line. Nothing has to be stored to find them, because the order of an epoch is a permutation that can be
evaluated at any position. So there is no shuffle buffer, no state to save, no cost of resuming at unit one
million, and no sample is lost to the end of an epoch: what does not fill a unit is the start of the next one.

What is permuted is chunks of a few consecutive samples, because neighbours in a shard are one byte-range read.
The trade-off: a larger chunk means fewer reads and a coarser shuffle. The last chunk of an epoch may be shorter,
so positions after it are shifted; where it stands is one evaluation of the inverse permutation, and everything
else is division. At the end the unit itself is shuffled, so that chunks do not stay together within it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from perceiver_dist.errors import InternalError
from pipelines.permutation import Permutation, hash64


@dataclass(frozen=True)
class TrainingPlan:
    """The endless shuffled line of one source's samples, cut into units.

    Attributes:
        source: Name of the source; sources with other names are shuffled independently.
        samples: Number of samples in the source, at least 1.
        unit_size: Samples per unit (the micro-batch).
        chunk_size: Consecutive samples that are read together.
        seed: Seed of the run.
    """

    source: str
    samples: int
    unit_size: int
    chunk_size: int
    seed: int

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            InternalError: The source has no samples, or a size is not positive.
        """
        if self.samples < 1:
            raise InternalError(f"source '{self.source}': has no samples; check its shards")
        if self.unit_size < 1 or self.chunk_size < 1:
            raise InternalError(
                f"source '{self.source}': micro_batch is {self.unit_size} and chunk_size {self.chunk_size}; "
                "both must be at least 1"
            )

    def unit(self, number: int) -> list[int]:
        """Return the sample numbers (0 <= n < samples) of unit `number`, in the order of the batch.

        Args:
            number: The unit's number, from 0.
        """
        position = number * self.unit_size
        members: list[int] = []
        while len(members) < self.unit_size:
            run = self._run_at(position + len(members))
            members += run[: self.unit_size - len(members)]
        order = sorted(
            range(self.unit_size), key=lambda row: hash64(self.seed, self.source, "unit", number, row)
        )
        return [members[row] for row in order]

    def sample_at(self, position: int) -> int:
        """Return the sample number at a position of the endless line of epochs.

        Args:
            position: Position, from 0.
        """
        return self._run_at(position)[0]

    def _run_at(self, position: int) -> range:
        """Return the samples from a position of the line to the end of their chunk."""
        epoch, offset = divmod(position, self.samples)
        order = _epoch_order(self.source, self.seed, epoch, -(-self.samples // self.chunk_size))
        last = order.chunks.size - 1
        last_length = self.samples - last * self.chunk_size
        start_of_last = order.place_of_last * self.chunk_size
        if offset < start_of_last:
            place, within = divmod(offset, self.chunk_size)
        elif offset < start_of_last + last_length:
            place, within = order.place_of_last, offset - start_of_last
        else:
            place, within = divmod(offset - last_length, self.chunk_size)
            place += 1
        first = order.chunks(place) * self.chunk_size
        return range(first + within, min(first + self.chunk_size, self.samples))


class _EpochOrder(NamedTuple):
    """The chunks of an epoch in their order, and where the last chunk stands, which may be shorter."""

    chunks: Permutation
    place_of_last: int


@lru_cache(maxsize=64)
def _epoch_order(source: str, seed: int, epoch: int, chunks: int) -> _EpochOrder:
    permutation = Permutation(size=chunks, key=hash64(seed, source, "epoch", epoch))
    return _EpochOrder(permutation, permutation.position_of(chunks - 1))


@dataclass(frozen=True)
class EvaluationPlan:
    """Every sample of a source once, in index order, with the last units padded.

    The number of units is a multiple of `lanes`, because an equal split over ranks drops a remainder.

    Attributes:
        samples: Number of samples in the source.
        unit_size: Samples per unit.
        lanes: Units per optimizer step.
        spare: Padded units after those: one less than the most ranks, where ranks need not divide the lanes.
        views: Units that follow each other with the same samples, each with another window in time.
    """

    samples: int
    unit_size: int
    lanes: int
    spare: int = 0
    views: int = 1

    @property
    def units(self) -> int:
        """Number of units, padded ones included."""
        filled = -(-self.samples // self.unit_size) * self.views
        return -(-filled // self.lanes) * self.lanes + self.spare

    def unit(self, number: int) -> list[int]:
        """Return the sample numbers of unit `number`; fewer than `unit_size`, or none, at the end.

        Args:
            number: The unit's number, from 0.
        """
        start = number // self.views * self.unit_size
        return list(range(start, min(start + self.unit_size, self.samples)))

    def window(self, number: int) -> float:
        """Return where unit `number` is cut in time: 0.5, the centre; several views from 0, the first, to 1, the last.

        Args:
            number: The unit's number, from 0.
        """
        return 0.5 if self.views == 1 else number % self.views / (self.views - 1)
