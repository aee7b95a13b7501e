"""Batches of a rank: units from the dataset, checked against the plan and moved to the training device."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray.data import DataIterator
from torch import Tensor

from perceiver_dist.data.device_copies import copies_to
from perceiver_dist.errors import InternalError
from pipelines.units.unit_maker import BadSample


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
    """Stream of this rank's units of one source, in order.

    Args:
        shard: This rank's part of the source's dataset, from Ray Train.
        source: Name of the source, for errors.
        device: Device of the batches.
        prefetch: Number of units to prefetch.
    """

    def __init__(self, shard: DataIterator, source: str, device: torch.device, prefetch: int) -> None:
        self._source = source
        self._device = device
        self._rows: Iterator[dict[str, Any]] = iter(
            shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=prefetch)
        )
        self.seconds_waited = 0.0

    def take(self, due: int) -> Batch:
        """Return the next unit, which must be number `due`.

        Args:
            due: Number of the unit that the plan gives this rank next.

        Returns:
            The unit as a batch on the device.

        Raises:
            UnitOrderError: The dataset delivered another unit, or none.
        """
        started = time.perf_counter()
        row = next(self._rows, None)
        self.seconds_waited += time.perf_counter() - started
        if row is None:
            raise UnitOrderError(f"source '{self._source}': unit {due} is due but the dataset has ended")
        batch = to_batch(row, self._device)
        if batch.unit != due:
            # Training would silently repeat some samples and skip others. Ray Data does not guarantee the order of
            # blocks, so it is checked here.
            raise UnitOrderError(
                f"source '{self._source}': unit {due} is due but unit {batch.unit} came; "
                "the order of blocks was lost between the read tasks and this rank"
            )
        return batch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the remaining units without checking their numbers, for evaluation, which is independent of order."""
        return (to_batch(row, self._device) for row in self._rows)


def to_batch(row: dict[str, Any], device: torch.device) -> Batch:
    """Convert a one-row block to a batch.

    Args:
        row: Column -> array with a leading axis of length 1; `pipelines.units.unit_maker` describes the columns.
        device: Device of labels and arrays; on CUDA the copy is asynchronous.

    Returns:
        The batch.
    """
    columns = {name: column[0] for name, column in row.items() if name not in ("keys", "unit", "quarantined")}
    present = {
        name.removesuffix("_present"): torch.from_numpy(columns.pop(name).copy())
        for name in list(columns)
        if name.endswith("_present")
    }
    valid = torch.from_numpy(columns.pop("valid").copy())
    sent = copies_to(device).send(columns)
    return Batch(
        unit=int(np.ravel(row["unit"])[0]),
        keys=[str(key) for key in row["keys"][0]],
        valid=valid,
        labels=sent["label"],
        arrays={modality: sent[modality] for modality in present},
        present=present,
        quarantined=[BadSample(*map(str, sample)) for sample in row["quarantined"][0]],
    )
