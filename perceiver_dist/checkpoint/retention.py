"""Retention of a run's checkpoints, and the choice of the one from which a group of workers resumes.

Each rank writes its own file and reports it here. When all files of a checkpoint are stored, its manifest is written
and older checkpoints are deleted. A single list, held by the tracker, decides for all ranks and datasets, so that they
resume from the same step.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from perceiver_dist.checkpoint.best_score import BestScore
from perceiver_dist.checkpoint.manifest import (
    MANIFEST,
    LossSum,
    Manifest,
    StoredFile,
    TrainingProgress,
    find_damage,
    read_manifest,
    write_manifest,
)
from perceiver_dist.checkpoint.run_folder import RunFolder, checkpoint_name
from perceiver_dist.errors import UserError
from pipelines.storage.files import STORAGE_ERRORS, delete, join, list_folder, reason_of, rename

DAMAGED_MANIFEST = "manifest.damaged.json"
"""Name to which the manifest of a damaged checkpoint is renamed, so that it is not a checkpoint any more."""


@dataclass(frozen=True)
class StartingPoint:
    """The step and checkpoint from which a group of workers resumes.

    Attributes:
        group: Number of the group; late reports of an earlier group are ignored.
        step: Steps taken; 0 for a new run.
        checkpoint: Path or URI of the checkpoint; None to start with new weights.
        writer: Id of the group in the names of its files, different from that of any group of any job.
        unlogged_losses: Source -> losses before the checkpoint that belong to the next logged step.
        best: The best evaluation before the checkpoint; None if the run does not look for it, or starts from the
            checkpoint of another run.
    """

    group: int
    step: int
    checkpoint: str | None
    writer: str = field(default_factory=lambda: uuid.uuid4().hex[:8], compare=False)
    unlogged_losses: Mapping[str, LossSum] = field(default_factory=dict)
    best: BestScore | None = None


class CheckpointList:
    """The checkpoints in a run's folder.

    Args:
        folder: The run's folder.
        keep: Number of newest checkpoints to keep, besides that of the best evaluation.
        start_from: Checkpoint of another run from which to start when the folder has none.
        before_manifest: Called before a manifest is written, to save the records that a resumed run needs.
        report: Called with a line for the screen.

    Attributes:
        start: Starting point of the newest group of workers; None before the first.
    """

    def __init__(
        self,
        folder: RunFolder,
        keep: int,
        start_from: str | None,
        before_manifest: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._start_from = start_from
        self._before_manifest = before_manifest
        self._report = report
        self._newest = 0
        self.start: StartingPoint | None = None
        self._started = False
        self._rank_outcomes: dict[int, dict[int, tuple[TrainingProgress, StoredFile | str]]] = {}
        self._failures: dict[int, str] = {}

    def choose_starting_point(self) -> StartingPoint:
        """Return the starting point of the next group of workers: the newest intact checkpoint.

        The datasets of all sources ask for it; the choice is kept until the group has started, so that they agree.

        Raises:
            UserError: The checkpoint of `start_from` is damaged, or the storage is unavailable.
        """
        if self.start is None or self._started:
            self._rank_outcomes.clear()
            self._failures.clear()
            group = self.start.group + 1 if self.start else 1
            try:
                self._newest, checkpoint = self._newest_intact()
                self.start = self._starting_point(group, checkpoint)
            except STORAGE_ERRORS as error:
                raise UserError(
                    f"{self._folder.uri} cannot be read ({reason_of(error)}); start the run again when it can be"
                ) from error
            self._started = False
        return self.start

    def workers_started(self) -> None:
        """Record that the group has started: the next group chooses again."""
        self._started = True

    def rank_saved(
        self, group: int, rank: int, waited_for: bool, progress: TrainingProgress, outcome: StoredFile | str
    ) -> None:
        """Record the outcome of a rank's file; the last one completes or abandons the checkpoint.

        Args:
            group: Number of the rank's group.
            rank: The rank.
            waited_for: Whether the ranks wait for the checkpoint, and report its failure themselves.
            progress: Progress of the run at the checkpoint, with the losses of this rank.
            outcome: The rank's file, or the reason why it could not be stored.
        """
        # Ranks of a lost group may still be writing when the next group has started.
        if self.start is None or group != self.start.group:
            return
        outcomes = self._rank_outcomes.setdefault(progress.steps, {})
        outcomes[rank] = progress, outcome
        if len(outcomes) < progress.world_size:
            return
        del self._rank_outcomes[progress.steps]
        progress = replace(progress, unlogged_losses=_added_up(of_rank for of_rank, _ in outcomes.values()))
        reason = self._finish(progress, [outcomes[rank][1] for rank in sorted(outcomes)])
        failure = f"checkpoint of step {progress.steps} could not be written ({reason})" if reason else ""
        self._failures[progress.steps] = failure and f"{failure}; {self._describe_newest()}"
        if reason and not waited_for:
            self._report(f"{failure}; training continues, {self._describe_newest()}")

    def outcome(self, step: int) -> str | None:
        """Return the outcome of a checkpoint: None while its files are being written, "" for success, else the reason.

        Args:
            step: Steps taken.
        """
        return self._failures.get(step)

    def _newest_intact(self) -> tuple[int, str | None]:
        """Return step and path of the newest intact checkpoint, and set aside the damaged ones that are newer."""
        damaged: dict[int, str] = {}
        step = 0
        for candidate in self._folder.checkpoint_folders():
            if not self._folder.is_checkpoint(candidate):
                continue
            damage = find_damage(self._folder.checkpoint(candidate))
            if not damage:
                step = candidate
                break
            if not self._folder.is_checkpoint(candidate):
                continue  # deleted while it was read, by the retention of a group of workers that is about to end
            damaged[candidate] = damage
        instead = f"step {step}" if step else "train.start_from" if self._start_from else "the start"
        # Only now, when the storage has answered for all of them: `find_damage` raises if it is unavailable.
        for other, damage in damaged.items():
            rename(join(self._folder.checkpoint(other), MANIFEST), DAMAGED_MANIFEST)
            self._report(
                f"checkpoint {checkpoint_name(other)} is damaged ({damage}); resuming from {instead}"
            )
        return step, self._folder.checkpoint(step) if step else None

    def _starting_point(self, group: int, own: str | None) -> StartingPoint:
        """Return the starting point at the run's own checkpoint, or at `start_from`.

        Raises:
            UserError: The checkpoint of `start_from` is damaged.
        """
        checkpoint = own or self._start_from
        if checkpoint is None:
            return StartingPoint(group, 0, None)
        if own is None and (damage := find_damage(checkpoint)):
            raise UserError(
                f"train.start_from is {checkpoint}, which is damaged ({damage}); use another checkpoint"
            )
        progress = read_manifest(checkpoint).progress
        losses, best = progress.unlogged_losses, progress.best if own else None
        return StartingPoint(group, progress.steps, checkpoint, unlogged_losses=losses, best=best)

    def _finish(self, progress: TrainingProgress, outcomes: list[StoredFile | str]) -> str:
        """Complete the checkpoint or delete its files; return the reason of a failure, "" if there is none."""
        files = tuple(outcome for outcome in outcomes if isinstance(outcome, StoredFile))
        reason = next((outcome for outcome in outcomes if isinstance(outcome, str)), "")
        reason = reason or self._write_manifest(Manifest(progress, files))
        if reason:
            # Best effort: what remains has no manifest, and is overwritten or deleted later.
            with suppress(*STORAGE_ERRORS):
                self._delete(progress.steps)
        else:
            self._newest = progress.steps
            self._delete_old(progress.best.step if progress.best else 0)
        return reason

    def _write_manifest(self, manifest: Manifest) -> str:
        """Write the manifest if all files are stored; return the reason of a failure, "" if there is none."""
        checkpoint = self._folder.checkpoint(manifest.progress.steps)
        try:
            sizes = list_folder(checkpoint)
            for file in manifest.files:
                if sizes.get(file.name) != file.bytes:
                    # This happens when storage.path is a local folder of each node instead of a shared one.
                    return f"{file.name} is not where the driver's node looks for it, {checkpoint}"
            for name in sizes.keys() - {file.name for file in manifest.files}:
                # Left by a damaged or incomplete checkpoint of the same step, of another world size.
                delete(join(checkpoint, name))
            self._before_manifest()
            write_manifest(checkpoint, manifest)
        except STORAGE_ERRORS as error:
            return reason_of(error)
        return ""

    def _delete_old(self, best: int) -> None:
        """Keep the newest checkpoints and the best; delete older ones, and incomplete ones before the newest."""
        kept = 0
        try:
            best = self._folder.best_kept(best)
            for step in self._folder.checkpoint_folders():
                if step > self._newest:
                    # Being written, or left by an earlier group and overwritten when training reaches the step.
                    continue
                if self._folder.is_checkpoint(step):
                    kept += 1
                    if kept <= self._keep or step == best:
                        continue
                self._delete(step)
        except STORAGE_ERRORS as error:
            self._report(f"older checkpoints could not be deleted ({reason_of(error)})")

    def _delete(self, step: int) -> None:
        # The manifest first: a folder that is half deleted must not be taken for a checkpoint.
        delete(join(self._folder.checkpoint(step), MANIFEST))
        delete(self._folder.checkpoint(step))

    def _describe_newest(self) -> str:
        return f"the newest is step {self._newest}" if self._newest else "there is no checkpoint yet"


def _added_up(ranks: Iterable[TrainingProgress]) -> dict[str, LossSum]:
    """Return the unlogged losses of all ranks, by source.

    The order of the ranks does not matter: fp64 has 29 bits more than the fp32 losses, so that their sum is exact.
    """
    sums: dict[str, LossSum] = {}
    for progress in ranks:
        for source, more in progress.unlogged_losses.items():
            before = sums.get(source, LossSum(0.0, 0))
            sums[source] = LossSum(before.total + more.total, before.count + more.count)
    return dict(sorted(sums.items()))
