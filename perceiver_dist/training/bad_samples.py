"""Bad samples of a rank: reported to the tracker, counted over all ranks, and too many of them end the run."""

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
"""Samples of a source that must have been read before its bad fraction is compared with the limit. Of fewer, a handful
of bad samples at the start would exceed a limit such as 0.01 by chance."""

_REASONS = 10
"""Most frequent reasons in the error message, which has to stay one readable line."""


class BadSamples:
    """One rank's count of read and bad samples by source.

    Args:
        sources: Names of the sources, in the same order on every rank.
        max_fraction: Maximum fraction of bad samples of a source.
        tracker: The `Tracker` actor.
        device: Device on which the counts are reduced over the ranks.
    """

    def __init__(
        self, sources: list[str], max_fraction: float, tracker: TrackerHandle, device: torch.device
    ) -> None:
        self._counts = {name: [0, 0] for name in sources}
        self._max_fraction = max_fraction
        self._tracker = tracker
        self._device = device
        self._last_report: list[ObjectRef[None]] = []

    def add(self, source: str, batch: Batch) -> None:
        """Count a batch, and report its bad samples to the tracker without waiting.

        Args:
            source: Source of the batch.
            batch: The batch.
        """
        self._counts[source][0] += sum(key != "" for key in batch.keys)
        self._counts[source][1] += len(batch.quarantined)
        if batch.quarantined:
            # An actor handles the calls of one caller in order: when the last one is answered, all are.
            self._last_report = [self._tracker.quarantined.remote(source, batch.unit, batch.quarantined)]

    def counted(self, source: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches and count each.

        Args:
            source: Source of the batches.
            batches: The batches.
        """
        for batch in batches:
            self.add(source, batch)
            yield batch

    def wait_until_reported(self) -> None:
        """Wait until the tracker has received all reports of this rank."""
        ray.get(self._last_report)

    def check(self) -> None:
        """Compare the fractions over all ranks with the limit. Every rank must call it, and all raise together.

        Raises:
            UserError: The fraction of bad samples of a source exceeds the limit.
        """
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64, device=self._device)
        distributed.all_reduce(counts)
        for source, (read, bad) in zip(self._counts, counts.tolist(), strict=True):
            if read < ENOUGH or bad <= self._max_fraction * read:
                continue
            # All ranks' reports have to be in before the reasons are counted.
            self.wait_until_reported()
            distributed.barrier()
            found = ray.get(self._tracker.bad_reasons.remote(source, _REASONS))
            reasons = "; ".join(f"{count} x {reason}" for reason, count in found)
            raise UserError(
                f"source '{source}': {bad:.0f} of {read:.0f} samples could not be used, more than "
                f"data.max_bad_fraction {self._max_fraction:g} ({reasons}); fix the samples in {QUARANTINE}, leave "
                "them out, or raise data.max_bad_fraction"
            )
