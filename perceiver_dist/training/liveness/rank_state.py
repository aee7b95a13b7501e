"""State of a rank: where it is, for whoever reports an error or a hang of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass
class RankState:
    """Step and activity of a rank, kept current by its loop.

    Attributes:
        rank: The rank.
        step: The current optimizer step, counted from 1; outside a step, the number of steps taken.
        activity: The current activity, such as "training".
        phase: What it does within the activity, such as "backward pass".
        progress: Counter that grows with every sign of progress; a rank that hangs keeps it.
        has_stepped: Whether it has taken a step, so that nothing slow of a start is left, such as compilation.
    """

    rank: int
    step: int = 0
    activity: str = "starting"
    phase: str = "starting"
    progress: int = 0
    has_stepped: bool = False

    def enter(self, activity: str, step: int) -> None:
        """Set the current activity.

        Args:
            activity: The activity.
            step: The optimizer step, as in the attribute.
        """
        self.activity, self.step = activity, step
        self.begin(activity)

    def begin(self, phase: str) -> None:
        """Set the current phase of the activity.

        Args:
            phase: The phase.
        """
        self.phase = phase
        self.advance()

    def advance(self) -> None:
        """Count a sign of progress."""
        self.progress += 1

    def advancing(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, each of which is progress.

        Args:
            items: The items.
        """
        for item in items:
            self.advance()
            yield item
