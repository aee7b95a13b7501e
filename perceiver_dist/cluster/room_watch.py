"""Watch over the room of a job: what nobody holds any more is given back, and a wait for room is said.

Ray removes a placement group when the actor that made it and its job have both ended. The job of a search lives for
hours, and every trial that is stopped leaves the groups of its training behind. So the driver of a run or a search
looks into Ray's tables, and removes them. Ray Train's own actor for this is left out, since it may remove the group of
a training that lives (`perceiver_dist/training/launch.py`).
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from ray.exceptions import RayError

from perceiver_dist.cluster.ray_tables import (
    Reservation,
    give_back,
    reservations,
    this_job,
)
from perceiver_dist.cluster.resources import Bundle, total_of
from perceiver_dist.cluster.room import WaitLine, free_now, purpose_of

_SECONDS_BETWEEN_LOOKS = 1.0
"""Short beside the start of a trial that waits for the room."""
_SECONDS_OF_A_USUAL_WAIT = 5.0
"""Ray places a group within a second if there is room. Longer, a person wonders whether the job hangs."""
_MAX_SECONDS_OF_A_LOOK = 5.0
"""How long the end of the job waits for a look, which is stuck if Ray has ended."""


class RoomWatch:
    """Context that watches the placement groups of this process's job, which include those of its trials.

    Args:
        report: Called with each line for the terminal, in another thread.
        elastic: Purpose and bundles of the fewest workers of an elastic run, which Ray Train does not reserve before
            there is room; None for others.
    """

    def __init__(
        self, report: Callable[[str], None], elastic: tuple[str, Sequence[Bundle]] | None = None
    ) -> None:
        self._report = report
        self._elastic = elastic
        self._waiting = _Times()
        self._lines: dict[str, WaitLine] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "RoomWatch":
        """Start watching."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join(_MAX_SECONDS_OF_A_LOOK)

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                known = reservations()
                own = [one for one in known if one.job == this_job()]
                for one in own:
                    if one.abandoned:
                        give_back(one)
                self._say([one for one in own if not one.abandoned], known)
            except RayError:
                continue  # what comes of it is for the main thread to say

    def _say(self, own: list[Reservation], known: list[Reservation]) -> None:
        """Say what waits for room, and for what. By purpose, since Ray Train often replaces a group that waits."""
        waiting = {purpose_of(one): one.bundles for one in own if not one.placed}
        if self._elastic is not None and self._elastic[0] not in map(purpose_of, own):
            purpose, bundles = self._elastic
            needed = total_of(bundles)
            free = free_now(needed)
            if any(free[name] < amount for name, amount in needed.items()):
                waiting[purpose] = tuple(bundles)
        for purpose in [purpose_of(one) for one in own if one.placed]:
            self._lines.pop(purpose, None)
        for purpose in self._waiting.longer_than(_SECONDS_OF_A_USUAL_WAIT, waiting):
            line = self._lines.setdefault(purpose, WaitLine(f"{purpose} waits for", self._report))
            line.show(waiting[purpose], known)


class _Times:
    """Since when some things have been so."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def longer_than(self, seconds: float, names: Iterable[str]) -> set[str]:
        """Return those of the things that are so now which have been so at every call for some seconds."""
        now = time.monotonic()
        self._since = {name: self._since.get(name, now) for name in names}
        return {name for name, since in self._since.items() if now - since >= seconds}
