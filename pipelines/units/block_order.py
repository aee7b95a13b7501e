"""Order of the blocks of a training dataset: which units share a block, and the number of the block that holds a unit.

Ray Data spends milliseconds on a block, whatever is in it. So a block holds the units of one lane for several steps of
one source: with groups of g steps, the units (step s, lane l) of steps s to s + g - 1. A rank takes them one by one, so
the order of samples is as if every unit were a block.

For each source, groups are counted from the dataset's first step and grow: 1, 2, 4, ... steps up to a largest size, a
power of two. So the first steps wait for no more units than they need. A group's blocks, one per lane, come one after
the other; the groups of all sources come in the order in which the schedule reaches them. Every block is then needed
exactly when the ones before it are, and one dataset serves all sources.

Ray deals blocks to the ranks in turn, so block b goes to rank b modulo world size. `BlockOrder.first_block` computes b
from the step alone: it counts the groups that the sources have begun before, in closed form. A rank needs no state to
know its units, and a dataset may begin at any step, in the middle of what was a group of another dataset.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from perceiver_dist.errors import InternalError
from pipelines.units.schedule import Schedule


class UnitBlock(NamedTuple):
    """What a block holds.

    Attributes:
        source: Name of the source.
        units: Numbers of its units, in order; none in a spare block, which an equal split may drop.
    """

    source: str
    units: range


class Group(NamedTuple):
    """Consecutive steps of a source, counted from its first step in the dataset.

    Attributes:
        number: Number of the group, from 0.
        start: Its first step.
        steps: Number of its steps, fewer at the end of a dataset.
    """

    number: int
    start: int
    steps: int


def group_of(position: int, largest: int) -> Group:
    """Return the group that a step lies in: groups have 1, 2, 4, ... steps, and from then on `largest`.

    Args:
        position: Number of the step, from 0.
        largest: Steps of the largest groups, a power of two.
    """
    if position < largest - 1:
        number = (position + 1).bit_length() - 1
        return Group(number, 2**number - 1, 2**number)
    doubled, full = largest.bit_length() - 1, (position + 1 - largest) // largest
    return Group(doubled + full, largest - 1 + full * largest, largest)


@dataclass(frozen=True)
class BlockOrder:
    """The blocks of the steps `first_step` to `stop_step` - 1 in the order in which they are dealt; iterate over it.

    Attributes:
        schedule: Source of each step.
        lanes: Units of a step.
        first_step: First optimizer step of the dataset.
        stop_step: Optimizer step after the last one.
        largest: Steps of the largest groups by source, each a power of two.
        spare: Number of blocks without units at the end, for an equal split to drop.
    """

    schedule: Schedule
    lanes: int
    first_step: int
    stop_step: int
    largest: Mapping[str, int]
    spare: int = 0

    def __post_init__(self) -> None:
        """Check the sizes of the groups.

        Raises:
            InternalError: One is not a power of two.
        """
        for source, steps in self.largest.items():
            if steps < 1 or steps & (steps - 1):
                raise InternalError(f"source '{source}': groups of {steps} steps; must be a power of two")

    def __iter__(self) -> Iterator[UnitBlock]:
        """Yield the blocks in order."""
        for step in range(self.first_step, self.stop_step):
            source = self.schedule.source_at(step)
            first, group = self._group_at(step, source)
            if self.schedule.steps_before(source, step) != first + group.start:
                continue  # The step's units are in blocks that came before.
            begin = first + group.start
            stop = min(begin + group.steps, self.schedule.steps_before(source, self.stop_step))
            for lane in range(self.lanes):
                yield UnitBlock(source, range(begin * self.lanes + lane, stop * self.lanes, self.lanes))
        yield from [UnitBlock("", range(0))] * self.spare

    def first_block(self, step: int) -> int:
        """Return the number of the block with the unit of lane 0 of a step; those of the other lanes follow it.

        Args:
            step: An optimizer step from `first_step` on.
        """
        source = self.schedule.source_at(step)
        first, group = self._group_at(step, source)
        begun_at = self.schedule.step_of(source, first + group.start)
        return self.lanes * sum(self._groups_begun(name, begun_at) for name in self.schedule.sources)

    def _group_at(self, step: int, source: str) -> tuple[int, Group]:
        """Return the source's first step in the dataset, as a number among its steps, and the group of `step`."""
        first = self.schedule.steps_before(source, self.first_step)
        return first, group_of(self.schedule.steps_before(source, step) - first, self.largest[source])

    def _groups_begun(self, source: str, step: int) -> int:
        """Return how many groups a source has begun before `step`."""
        first = self.schedule.steps_before(source, self.first_step)
        taken = self.schedule.steps_before(source, step) - first
        return group_of(taken - 1, self.largest[source]).number + 1 if taken else 0


@dataclass(frozen=True)
class SingleUnits:
    """Blocks of one unit each, for datasets whose consumers must get the same number of units, whatever their number.

    Attributes:
        source: Name of the source.
        first: Number of the first unit.
        stop: Number after that of the last unit.
    """

    source: str
    first: int
    stop: int

    def __iter__(self) -> Iterator[UnitBlock]:
        """Yield the blocks in order."""
        for unit in range(self.first, self.stop):
            yield UnitBlock(self.source, range(unit, unit + 1))
