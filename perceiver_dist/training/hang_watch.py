"""Watch of the driver on its run: what hangs is ended, and starts again from the newest checkpoint.

In two stages. Ranks that hang are killed, and Ray Train starts a new group. If that cannot help, because the readers
deliver nothing, or because the tracker or Ray Train's controller is silent or starts no workers, the driver gives up
the whole Ray of the run: `HangError`, and the run starts anew as after a kill of everything.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

import ray
from ray.exceptions import RayError

from perceiver_dist.checkpoint.lease import Fence, LeaseLostError
from perceiver_dist.checkpoint.run_folder import ERRORS, RunFolder
from perceiver_dist.training.liveness.hang import HangBounds, describe, waits_for_data
from perceiver_dist.training.liveness.hung_processes import end_processes
from perceiver_dist.training.liveness.life import RunLife
from perceiver_dist.training.tracker.handle import TrackerHandle
from pipelines.storage.files import STORAGE_ERRORS, reason_of, write_text

_SECONDS_FOR_ANSWER = 5.0
"""How long to wait for the tracker, whose thread for this has nothing else to do."""
_SECONDS_FOR_ENDING = 20.0
"""How long to wait until the ranks are killed, which usually takes a second."""


class HangError(Exception):
    """The run hangs, and only a new Ray can help."""


class HangWatch:
    """Watch on the ranks, the controller and the tracker of a run.

    Args:
        tracker: The `Tracker` actor.
        folder: The run's folder, for the stacks.
        fence: The right to write there. Without it nobody is given up: another job trains the run.
        bounds: Time without progress from which the run hangs.
        workers_must_fit: Whether workers find room at once, so that waiting for them is a hang; false on a cluster,
            where room may come later.
        report: Called with a line for the screen, where the tracker cannot be told.
        on_error: Called when `error` is set; None where somebody reads it.
        clock: Monotonic clock in seconds.

    Attributes:
        life: What is known of the run.
        error: Why the driver has to give up its Ray; None as long as it need not.
    """

    def __init__(
        self,
        tracker: TrackerHandle,
        folder: RunFolder,
        fence: Fence,
        bounds: HangBounds,
        workers_must_fit: bool,
        report: Callable[[str], None],
        on_error: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.life = RunLife()
        self.error: HangError | None = None
        self._tracker, self._folder, self._report, self._on_error = tracker, folder, report, on_error
        self._fence = fence
        self._bounds, self._workers_must_fit, self._clock = bounds, workers_must_fit, clock
        self._answered_at = clock()
        self._ended_group, self._ended_at = 0, 0.0

    @property
    def silent_seconds(self) -> float:
        """Time since the tracker has last answered."""
        return self._clock() - self._answered_at

    def look(self) -> None:
        """Ask the tracker, and end what hangs. It takes seconds if something does not answer."""
        if self.error is not None:
            return
        try:
            self.life = ray.get(self._tracker.life.remote(), timeout=_SECONDS_FOR_ANSWER)
            self._answered_at = self._clock()
        except RayError:
            if 0 < self._bounds.hang_seconds < self.silent_seconds:
                self._give_up(f"the tracker has not answered for {self.silent_seconds:.0f} s")
            return
        if self._bounds.hang_seconds:
            self._judge(self.life)

    def _judge(self, life: RunLife) -> None:
        silent = life.controller_silent_seconds or 0.0
        if silent > self._bounds.hang_seconds:
            self._give_up(f"Ray Train's controller has been silent for {silent:.0f} s")
        elif life.group and life.group == self._ended_group:
            waited = self._clock() - self._ended_at
            if waited > self._bounds.hang_seconds and self._workers_must_fit:
                self._give_up(f"no workers have started for {waited:.0f} s after the hang")
        elif life.ranks and self._bounds.hangs(life):
            if waits_for_data(life):
                self._give_up(_line(life))
            else:
                self._end_group(life)
        elif (
            self._workers_must_fit
            and life.group
            and not life.ranks
            and life.starting_seconds > self._bounds.start
        ):
            self._give_up(f"no worker has started for {life.starting_seconds:.0f} s")

    def _end_group(self, life: RunLife) -> None:
        self._ended_group, self._ended_at = life.group, self._clock()
        name = _file_name(life)
        self._tracker.ranks_hung.remote(_line(life), name, self._end_ranks(life))

    def _give_up(self, reason: str) -> None:
        stacks = self._end_ranks(self.life)
        name = f"{ERRORS}/{_file_name(self.life)}.txt"
        try:
            self._fence.check()
            write_text(self._folder.file(name), stacks)
        except LeaseLostError:
            return  # the driver learns it from its lease
        except STORAGE_ERRORS as error:
            self._report(f"{name} could not be written ({reason_of(error)})")
        self.error = HangError(f"{reason}; see {name}")
        if self._on_error is not None:
            self._on_error()

    def _end_ranks(self, life: RunLife) -> str:
        """Kill the ranks, and return a text with what they did."""
        processes = {f"rank {rank.state.rank}": rank.process for rank in life.ranks}
        texts = dict.fromkeys(processes, "Ray did not answer\n")
        # In a thread, since a Ray that hangs itself keeps whoever asks it.
        thread = threading.Thread(target=lambda: texts.update(end_processes(processes.items())), daemon=True)
        thread.start()
        thread.join(_SECONDS_FOR_ENDING)
        parts = [
            f"{name} (process {of.pid} on {of.host})\n{rank.collectives}{texts[name]}"
            for (name, of), rank in zip(processes.items(), life.ranks, strict=True)
        ]
        return "\n".join([f"{describe(life)}\n", *parts])


def end_this_process() -> None:
    """End this process by SIGKILL, so that whoever has started it starts it again."""
    os.kill(os.getpid(), signal.SIGKILL)


def _line(life: RunLife) -> str:
    step = max((rank.state.step for rank in life.ranks), default=0)
    return f"step {step}: no progress for {life.idle_seconds:.0f} s ({describe(life)})"


def _file_name(life: RunLife) -> str:
    step = max((rank.state.step for rank in life.ranks), default=0)
    return f"step-{step:08d}-hang-{life.group}"
