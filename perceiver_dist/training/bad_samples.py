"""Bad samples as a rank meets them: told to the tracker, counted over all ranks, and too many of them end the run."""

from collections.abc import Iterable, Iterator

import ray
import torch
from ray import ObjectRef
from torch import distributed

from perceiver_dist.checkpoint.run_folder import QUARANTINE
from perceiver_dist.data.batches import Batch
from perceiver_dist.errors import UserError
from perceiver_dist.training.tracker.handle import TrackerHandle

ENOUGH = 500
"""Samples of a source that must have been met before their bad fraction says anything."""

_REASONS = 10


class BadSamples:
    """One rank's count of the samples that it met and of the bad ones among them, by source.

    Args:
        sources: Names of the sources, in the same order on every rank.
        max_fraction: Largest fraction of a source's samples that may be bad.
        tracker: The `Tracker` actor.
        device: Where counts are added up over the ranks.
    """

    def __init__(
        self, sources: list[str], max_fraction: float, tracker: TrackerHandle, device: torch.device
    ) -> None:
        self._counts = {name: [0, 0] for name in sources}
        self._max_fraction = max_fraction
        self._tracker = tracker
        self._device = device
        self._told: list[ObjectRef[None]] = []

    def saw(self, source: str, batch: Batch) -> None:
        """Count a batch, and tell the tracker of its bad samples without waiting.

        Args:
            source: The batch's source.
            batch: The batch.
        """
        self._counts[source][0] += sum(key != "" for key in batch.keys)
        self._counts[source][1] += len(batch.quarantined)
        if batch.quarantined:
            # An actor takes one caller's messages in order: when the last one is answered, all are.
            self._told = [self._tracker.quarantined.remote(source, batch.unit, batch.quarantined)]

    def seen(self, source: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches, each counted.

        Args:
            source: The batches' source.
            batches: The batches.
        """
        for batch in batches:
            self.saw(source, batch)
            yield batch

    def wait_until_reported(self) -> None:
        """Wait until the tracker knows of every bad sample that this rank met."""
        ray.get(self._told)

    def check(self) -> None:
        """Compare the fractions over all ranks with the limit; every rank must call it, and all end alike.

        Raises:
            UserError: Too many samples of a source are bad.
        """
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64, device=self._device)
        distributed.all_reduce(counts)
        for source, (met, bad) in zip(self._counts, counts.tolist(), strict=True):
            if met < ENOUGH or bad <= self._max_fraction * met:
                continue
            self.wait_until_reported()
            distributed.barrier()
            reasons = ray.get(self._tracker.bad_reasons.remote(source, _REASONS))
            raise UserError(
                f"source '{source}': {bad:.0f} of {met:.0f} samples could not be used, more than data.max_bad_fraction "
                f"{self._max_fraction:g} ({'; '.join(f'{count} x {reason}' for reason, count in reasons)}); mend the "
                f"samples in {QUARANTINE}, leave them out, or raise data.max_bad_fraction"
            )
