"""State of a rank: where it is, for whoever reports an error or a hang of it."""

from dataclasses import dataclass


@dataclass
class RankState:
    """Step and activity of a rank, kept current by its loop.

    Attributes:
        rank: The rank.
        step: The current optimizer step, counted from 1; outside a step, the number of steps taken.
        activity: The current activity, such as "training".
    """

    rank: int
    step: int = 0
    activity: str = "starting"

    def enter(self, activity: str, step: int) -> None:
        """Set the current activity.

        Args:
            activity: The activity.
            step: The optimizer step, as in the attribute.
        """
        self.activity, self.step = activity, step
