"""The checkpoints of one run: which there are, which are whole, and which one a group of workers goes on from.

Ranks write their files each by itself and say so here. When all files of a checkpoint are stored, its manifest is
written, and older checkpoints are deleted. One list decides for all, so that the ranks and the datasets go on from
the same step.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from perceiver_dist.checkpoint.manifest import (
    MANIFEST,
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
"""Name of the manifest of a checkpoint that was found damaged, which is none any more."""


@dataclass(frozen=True)
class StartingPoint:
    """What a group of workers goes on from.

    Attributes:
        group: Number of the group; what an earlier group still has to say of its files does not count.
        step: Steps taken; 0 for the start.
        checkpoint: Path or URI of the checkpoint; None to begin with new weights.
    """

    group: int
    step: int
    checkpoint: str | None


class CheckpointList:
    """The checkpoints in a run's folder.

    Args:
        folder: The run's folder.
        keep: Newest checkpoints that are kept.
        start_from: Checkpoint of another run to begin from when there is none in the folder.
        before_manifest: Called before a manifest is written, to save what a run that goes on from it needs.
        tell: Called with a line for the screen.

    Attributes:
        start: What the newest group of workers goes on from; None before the first.
    """

    def __init__(
        self,
        folder: RunFolder,
        keep: int,
        start_from: str | None,
        before_manifest: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._start_from = start_from
        self._before_manifest = before_manifest
        self._tell = tell
        self._newest = 0
        self.start: StartingPoint | None = None
        self._started = False
        self._outcomes: dict[int, dict[int, StoredFile | str]] = {}
        self._endings: dict[int, str] = {}

    def choose_starting_point(self) -> StartingPoint:
        """Find the newest checkpoint that is whole, for a group of workers that is to start.

        The choice stands until the group has started, however often it is asked for.

        Raises:
            UserError: The checkpoint to begin from is damaged, or the storage does not answer.
        """
        if self.start is None or self._started:
            self._outcomes.clear()
            self._endings.clear()
            group = self.start.group + 1 if self.start else 1
            self._newest, checkpoint = self._newest_whole()
            self.start = StartingPoint(group, *self._place(checkpoint))
            self._started = False
        return self.start

    def workers_started(self) -> None:
        """Note that the group has started: the next one has to choose anew."""
        self._started = True

    def rank_saved(
        self, group: int, rank: int, waited_for: bool, progress: TrainingProgress, outcome: StoredFile | str
    ) -> None:
        """Note how a rank's part of a checkpoint ended; with the last one the checkpoint is finished, or given up.

        Args:
            group: Number of the rank's group.
            rank: The rank.
            waited_for: Whether the ranks wait for the ending and say themselves what follows from it.
            progress: How far the run had come.
            outcome: The rank's file, or why it could not be stored.
        """
        if self.start is None or group != self.start.group:
            return
        outcomes = self._outcomes.setdefault(progress.steps, {})
        outcomes[rank] = outcome
        if len(outcomes) < progress.world_size:
            return
        del self._outcomes[progress.steps]
        reason = self._finish(progress, [outcomes[rank] for rank in sorted(outcomes)])
        ending = f"checkpoint of step {progress.steps} could not be written ({reason})" if reason else ""
        self._endings[progress.steps] = ending and f"{ending}; {self._newest_in_words()}"
        if reason and not waited_for:
            self._tell(f"{ending}; training goes on, {self._newest_in_words()}")

    def ending(self, step: int) -> str | None:
        """Return how saving ended: None while files are being written, "" for a checkpoint, else what went wrong.

        Args:
            step: Steps taken.
        """
        return self._endings.get(step)

    def _newest_whole(self) -> tuple[int, str | None]:
        """Return step and place of the newest checkpoint that is whole, after setting aside those that are not."""
        damaged: dict[int, str] = {}
        step = 0
        for candidate in self._folder.checkpoint_folders():
            if not self._folder.is_checkpoint(candidate):
                continue
            damage = find_damage(self._folder.checkpoint(candidate))
            if not damage:
                step = candidate
                break
            damaged[candidate] = damage
        instead = f"step {step}" if step else "train.start_from" if self._start_from else "the start"
        for other, damage in damaged.items():
            rename(join(self._folder.checkpoint(other), MANIFEST), DAMAGED_MANIFEST)
            self._tell(f"checkpoint {checkpoint_name(other)} is damaged ({damage}); going on from {instead}")
        return step, self._folder.checkpoint(step) if step else None

    def _place(self, own: str | None) -> tuple[int, str | None]:
        checkpoint = own or self._start_from
        if checkpoint is None:
            return 0, None
        if own is None and (damage := find_damage(checkpoint)):
            raise UserError(
                f"train.start_from is {checkpoint}, which is damaged ({damage}); take another checkpoint"
            )
        return read_manifest(checkpoint).progress.steps, checkpoint

    def _finish(self, progress: TrainingProgress, outcomes: list[StoredFile | str]) -> str:
        """Make the files a checkpoint, or delete them; return what went wrong."""
        files = tuple(outcome for outcome in outcomes if isinstance(outcome, StoredFile))
        reason = next((outcome for outcome in outcomes if isinstance(outcome, str)), "")
        reason = reason or self._write_manifest(Manifest(progress, files))
        if reason:
            with suppress(*STORAGE_ERRORS):
                self._delete(progress.steps)
        else:
            self._newest = progress.steps
            self._delete_old()
        return reason

    def _write_manifest(self, manifest: Manifest) -> str:
        """Write the manifest if all files are there; return what is wrong."""
        checkpoint = self._folder.checkpoint(manifest.progress.steps)
        try:
            sizes = list_folder(checkpoint)
            for file in manifest.files:
                if sizes.get(file.name) != file.bytes:
                    # So it is when storage.path is a folder of each node's own.
                    return f"{file.name} is not where the driver's node looks for it, {checkpoint}"
            for name in sizes.keys() - {file.name for file in manifest.files}:
                delete(
                    join(checkpoint, name)
                )  # of a checkpoint of this step that was damaged or half written
            self._before_manifest()
            write_manifest(checkpoint, manifest)
        except STORAGE_ERRORS as error:
            return reason_of(error)
        return ""

    def _delete_old(self) -> None:
        """Keep the newest checkpoints; delete older ones, and what lies between and is none."""
        kept = 0
        try:
            for step in self._folder.checkpoint_folders():
                if step > self._newest:
                    continue  # being written, or left by an earlier group and written anew when training gets there
                if self._folder.is_checkpoint(step):
                    kept += 1
                    if kept <= self._keep:
                        continue
                self._delete(step)
        except STORAGE_ERRORS as error:
            self._tell(f"checkpoint {checkpoint_name(step)} could not be deleted ({reason_of(error)})")

    def _delete(self, step: int) -> None:
        # In this order: what is half deleted is no checkpoint.
        delete(join(self._folder.checkpoint(step), MANIFEST))
        delete(self._folder.checkpoint(step))

    def _newest_in_words(self) -> str:
        return f"the newest is step {self._newest}" if self._newest else "there is none yet"
