"""Plan of the sample order: the samples of a unit (micro-batch) as a pure function of seed, source and unit number.

Most data loaders walk through a shuffled list or a shuffle buffer. To resume, they replay it or load its state; with
several workers, the order also depends on their number. Here a unit's samples are computed from its number, by any
process at any time, so nothing has to be saved, replayed or synchronized.

Training: imagine all epochs, each shuffled anew, written one after another as one endless sequence. Unit u is its
positions [u * unit_size, (u + 1) * unit_size). A unit may span epochs, so no epoch drops or pads a remainder. The
order of an epoch is a `Permutation`, whose element at any position is one function call, so unit one million costs as
much as unit 0. Every epoch contains each sample exactly once, since a permutation is a bijection.

Chunks of `chunk_size` consecutive samples are permuted, not single samples, because neighbours in a shard are read with
one request: larger chunks mean fewer requests and a coarser shuffle. Only the last chunk in index order may be shorter.
All chunks before its place in the epoch are full, so position divided by `chunk_size` gives the place of a chunk; after
it, the same holds once its length is subtracted. Its place is one call of the inverse permutation. Finally the samples
of a unit are shuffled among themselves, so that the samples of a chunk are not adjacent in the batch.

What others rely on:

- A unit depends on the fields of its plan and its number alone: not on the number of ranks, nodes or read tasks, nor on
  what was read before. The order of the samples in the index (`SourceIndex`) must stay the same, too.
- The k-th optimizer step (from 0) of a source consists of units k * lanes to (k + 1) * lanes - 1, where `lanes` is the
  number of micro-batches in a global batch and k comes from `Schedule.steps_before`. So the global batch of a step is
  the same for any number of ranks (elastic training), and a restart needs the number of the step only.
- Which rank computes which unit is no concern of the plan: see `pipelines/units/unit_datasource.py`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from perceiver_dist.errors import UserError
from pipelines.permutation import Permutation, hash64


@dataclass(frozen=True)
class TrainingPlan:
    """The endless shuffled sequence of one source's samples, cut into units.

    Attributes:
        source: Name of the source, part of the seed: different sources are shuffled independently.
        samples: Number of samples in the source, at least 1.
        unit_size: Samples per unit (the micro-batch). If it exceeds `samples`, samples repeat within a unit.
        chunk_size: Consecutive samples that are shuffled and read together.
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
            UserError: The source has no samples, or a size is below 1.
        """
        if self.samples < 1:
            raise UserError(f"source '{self.source}': has no samples; check its shards")
        if self.unit_size < 1 or self.chunk_size < 1:
            raise UserError(
                f"source '{self.source}': micro_batch is {self.unit_size} and chunk_size {self.chunk_size}; "
                "both must be at least 1"
            )

    def unit(self, number: int) -> list[int]:
        """Return the sample numbers (0 <= n < samples) of a unit, in the order of its rows.

        Args:
            number: Number of the unit, from 0.
        """
        position = number * self.unit_size
        members: list[int] = []
        while len(members) < self.unit_size:
            rest_of_chunk = self._rest_of_chunk(position + len(members))
            members += rest_of_chunk[: self.unit_size - len(members)]
        # Sorting by a hash of the row is a shuffle that needs no state.
        order = sorted(
            range(self.unit_size), key=lambda row: hash64(self.seed, self.source, "unit", number, row)
        )
        return [members[row] for row in order]

    def sample_at(self, position: int) -> int:
        """Return the sample number at a position of the endless sequence of epochs.

        Args:
            position: Position, from 0.
        """
        return self._rest_of_chunk(position)[0]

    def _rest_of_chunk(self, position: int) -> range:
        """Return the sample numbers from a position of the sequence to the end of the chunk that it lies in."""
        epoch, offset = divmod(position, self.samples)
        order = _epoch_order(self.source, self.seed, epoch, -(-self.samples // self.chunk_size))
        last = order.chunks.size - 1
        last_length = self.samples - last * self.chunk_size
        # Offset of the last chunk within the epoch: only full chunks come before it.
        start_of_last = order.place_of_last * self.chunk_size
        if offset < start_of_last:
            place, within = divmod(offset, self.chunk_size)
        elif offset < start_of_last + last_length:
            place, within = order.place_of_last, offset - start_of_last
        else:
            # Without the last chunk's samples there are only full chunks again; its place is added back.
            place, within = divmod(offset - last_length, self.chunk_size)
            place += 1
        first = order.chunks(place) * self.chunk_size
        return range(first + within, min(first + self.chunk_size, self.samples))


class _EpochOrder(NamedTuple):
    """The shuffled chunks of an epoch, and the place of the last chunk (in index order), which may be shorter."""

    chunks: Permutation
    place_of_last: int


# A process reads units of a few sources, of which each spans few epochs; an entry is a few hundred bytes.
@lru_cache(maxsize=64)
def _epoch_order(source: str, seed: int, epoch: int, chunks: int) -> _EpochOrder:
    permutation = Permutation(size=chunks, key=hash64(seed, source, "epoch", epoch))
    return _EpochOrder(permutation, permutation.position_of(chunks - 1))


@dataclass(frozen=True)
class EvaluationPlan:
    """Every sample of a source exactly once, in index order, with the last units padded.

    `streaming_split(equal=True)` drops the units at the end that cannot be split equally. So the number of units is
    padded to a multiple of `lanes`, which suits every number of ranks that divides the lanes. For others, `spare` empty
    units follow, enough that no unit with a sample is dropped.

    Attributes:
        samples: Number of samples in the source.
        unit_size: Samples per unit.
        lanes: Units per optimizer step.
        spare: Empty units at the end: max ranks - 1 if a number of ranks may not divide the lanes, else 0.
        views: Consecutive units with the same samples, each at a different window in time.
    """

    samples: int
    unit_size: int
    lanes: int
    spare: int = 0
    views: int = 1

    @property
    def units(self) -> int:
        """Number of units, including empty ones."""
        filled = -(-self.samples // self.unit_size) * self.views
        return -(-filled // self.lanes) * self.lanes + self.spare

    def unit(self, number: int) -> list[int]:
        """Return the sample numbers of a unit: `unit_size` of them, fewer or none at the end.

        Args:
            number: Number of the unit, from 0.
        """
        start = number // self.views * self.unit_size
        return list(range(start, min(start + self.unit_size, self.samples)))

    def window(self, number: int) -> float:
        """Return the window in time of a unit: 0.5 (centre) for one view; from 0 (first) to 1 (last) for several.

        Args:
            number: Number of the unit, from 0.
        """
        return 0.5 if self.views == 1 else number % self.views / (self.views - 1)
