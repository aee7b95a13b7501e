"""The tracker as the ranks of one group of workers reach it: fenced off once another group has replaced them.

A group that was given up may come back, when its node's network heals or somebody continues its processes. Whatever it
then reports would go over the records of its successor. So every message of a rank says which group it comes from, and
the tracker refuses those of any other than the newest.
"""

from abc import ABC, abstractmethod
from typing import Any, cast

import ray
from ray import ObjectRef

from perceiver_dist.checkpoint.lease import Fence, LeaseLostError
from perceiver_dist.training.liveness.heartbeat import RankReport
from perceiver_dist.training.liveness.life import Heartbeats, RunLife
from perceiver_dist.training.liveness.stragglers import Place, Stragglers
from perceiver_dist.training.tracker.handle import TrackerHandle


class GroupReplacedError(RuntimeError):
    """The rank belongs to a group of workers that has been replaced."""


class FencedRecord(ABC):
    """Base of the tracker: receives heartbeats, and the messages of the newest group of workers only.

    Heartbeats, and questions about them, have a thread of their own. The one for all other methods may wait for a
    storage or draw figures.

    Args:
        fence: The right to write to the run's folder, which another job may take over.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._heartbeats = Heartbeats()
        self._stragglers = Stragglers()

    @abstractmethod
    def stop_for(self, message: str) -> None:
        """Record an error for which the run has to end.

        Args:
            message: One line.
        """

    def begin_group(self, group: int) -> None:
        """Refuse what earlier groups of workers report from now on.

        Args:
            group: Number of the group that is to start.
        """
        self._heartbeats.begin_group(group)

    def from_group(self, group: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method for a rank, unless its group of workers, or this whole job, has been replaced.

        Args:
            group: Number of the rank's group.
            method: Name of the method.
            arguments: Its arguments.

        Returns:
            What the method returns.

        Raises:
            GroupReplacedError: The group is not the newest.
            LeaseLostError: Another job has taken over the run.
        """
        if group != self._heartbeats.group:
            raise GroupReplacedError(f"workers of group {group} have been replaced")
        self.check_fence()
        return getattr(self, method)(*arguments)

    def check_fence(self) -> None:
        """Check that this job may write to the run's folder and to MLflow.

        Raises:
            LeaseLostError: It may not. The run ends.
        """
        try:
            self._fence.check()
        except LeaseLostError as error:
            self.stop_for(str(error))
            raise

    @ray.method(concurrency_group="liveness")
    def rank_lives(self, report: RankReport) -> None:
        """Record a heartbeat of a rank.

        Args:
            report: What the rank does.
        """
        self._heartbeats.rank_lives(report)

    @ray.method(concurrency_group="liveness")
    def controller_lives(self) -> None:
        """Record a heartbeat of Ray Train's controller."""
        self._heartbeats.controller_lives()

    def _places(self) -> dict[int, Place]:
        """Return where each rank runs that has sent a heartbeat."""
        ranks = self._heartbeats.life().ranks
        return {rank.state.rank: Place(rank.process.node, rank.process.host) for rank in ranks}

    def slow_nodes(self) -> frozenset[str]:
        """Return the ids of the nodes that are known to be slow."""
        return self._stragglers.nodes

    @ray.method(concurrency_group="liveness")
    def life(self) -> RunLife:
        """Return what is known of the life of the run's processes."""
        return self._heartbeats.life()


class _FencedMethod:
    def __init__(self, tracker: TrackerHandle, group: int, name: str) -> None:
        self._tracker, self._group, self._name = tracker, group, name

    def remote(self, *arguments: Any) -> ObjectRef[Any]:
        return self._tracker.from_group.remote(self._group, self._name, arguments)


class _FencedTracker:
    def __init__(self, tracker: TrackerHandle, group: int) -> None:
        self._tracker, self._group = tracker, group

    def __getattr__(self, name: str) -> Any:
        # Heartbeats carry the number of the group themselves, and are received beside all other calls.
        method = getattr(self._tracker, name)
        return method if name == "rank_lives" else _FencedMethod(self._tracker, self._group, name)


def fenced(tracker: TrackerHandle, group: int) -> TrackerHandle:
    """Return the tracker's handle for the ranks of a group of workers.

    Its calls fail with `GroupReplacedError` as soon as a newer group is to start.

    Args:
        tracker: The `Tracker` actor.
        group: Number of the group.
    """
    return cast(TrackerHandle, _FencedTracker(tracker, group))
