"""Batches of a rank: units from the dataset, checked against the plan and moved to the training device."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from ray.data import DataIterator
from torch import Tensor

from perceiver_dist.data.device_copies import copies_to
from perceiver_dist.errors import InternalError
from pipelines.units.block_format import StoredBlock
from pipelines.units.unit_datasource import stored_blocks
from pipelines.units.unit_maker import BadSample, Unit


class UnitOrderError(InternalError):
    """A rank received another unit than the plan gives it: a bug in the data path, never a mistake of the user."""


@dataclass(frozen=True)
class Batch:
    """One unit of B samples: labels and arrays on the training device, flags on the host.

    What depends on a flag, such as whether attention needs a mask, is then decided without waiting for the device.

    Attributes:
        unit: The unit's number.
        keys: Shard and key of each sample; "" for padded rows of an evaluation unit.
        valid: (B,) bool on the CPU, false for padded rows and for bad samples of an evaluation.
        labels: (B,) int64 for softmax, (B, classes) uint8 for multilabel.
        arrays: Modality -> (B, *array_shape), as decoded.
        present: Modality -> (B,) bool on the CPU, false where the sample has no such modality.
        quarantined: Samples of the unit that could not be used.
    """

    unit: int
    keys: list[str]
    valid: Tensor
    labels: Tensor
    arrays: dict[str, Tensor]
    present: dict[str, Tensor]
    quarantined: list[BadSample]


class UnitStream:
    """Stream of this rank's units of a dataset.

    A rank takes the next block exactly when it needs a unit that no block it holds has. So blocks come in the order in
    which it needs them, however many sources and lanes they belong to.

    Args:
        shard: This rank's part of the dataset, from Ray Train.
        device: Device of the batches.
        prefetch: Number of blocks to prefetch.
    """

    def __init__(self, shard: DataIterator, device: torch.device, prefetch: int) -> None:
        self._device = device
        self._blocks = stored_blocks(shard, prefetch)
        # Blocks of which units are left, and the place of the next one, by source and number of that unit.
        self._open: dict[tuple[str, int], tuple[StoredBlock, int]] = {}
        self.seconds_waited = 0.0

    def take(self, source: str, due: int) -> Batch:
        """Return the unit that the plan gives this rank next.

        Args:
            source: Name of the source.
            due: Number of the unit.

        Returns:
            The unit as a batch on the device.

        Raises:
            UnitOrderError: The dataset delivered another unit, or none.
        """
        if (source, due) not in self._open:
            self._open_next(source, due)
        block, row = self._open.pop((source, due))
        if row + 1 < len(block.units):
            self._open[source, block.units[row + 1]] = (block, row + 1)
        return to_batch(block.unit(row), self._device)

    def _open_next(self, source: str, due: int) -> None:
        """Take the next block, whose first unit must be the one that is due.

        Raises:
            UnitOrderError: It is another unit, or there is no block.
        """
        started = time.perf_counter()
        block = next(self._blocks, None)
        self.seconds_waited += time.perf_counter() - started
        if block is None:
            raise UnitOrderError(f"source '{source}': unit {due} is due but the dataset has ended")
        if block.source != source or block.units[0] != due:
            # Training would silently repeat some samples and skip others. Ray Data does not guarantee the order of
            # blocks, so it is checked here.
            came = f"unit {block.units[0]}" if block.units else "a spare block"
            other = f" of source '{block.source}'" if block.units and block.source != source else ""
            raise UnitOrderError(
                f"source '{source}': unit {due} is due but {came}{other} came; "
                "the order of blocks was lost between the read tasks and this rank"
            )
        self._open[source, due] = (block, 0)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the remaining units without checking their numbers, for evaluation, which is independent of order."""
        for block in self._blocks:
            for row in range(len(block.units)):
                yield to_batch(block.unit(row), self._device)


def to_batch(unit: Unit, device: torch.device) -> Batch:
    """Copy a unit to a batch.

    Args:
        unit: Its arrays by name, as `pipelines.units.unit_maker` describes them.
        device: Device of labels and arrays; on CUDA the copy is asynchronous.

    Returns:
        The batch.
    """
    columns = {name: array for name, array in unit.items() if name not in ("keys", "unit", "quarantined")}
    present = {
        name.removesuffix("_present"): torch.from_numpy(columns.pop(name).copy())
        for name in list(columns)
        if name.endswith("_present")
    }
    valid = torch.from_numpy(columns.pop("valid").copy())
    sent = copies_to(device).send(columns)
    return Batch(
        unit=int(unit["unit"][0]),
        keys=[str(key) for key in unit["keys"]],
        valid=valid,
        labels=sent["label"],
        arrays={modality: sent[modality] for modality in present},
        present=present,
        quarantined=[BadSample(*map(str, sample)) for sample in unit["quarantined"]],
    )
