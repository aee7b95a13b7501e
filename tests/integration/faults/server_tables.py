"""Tables of the server of a Ray, read by a process of its own.

Ray's client library ends its process a minute after the server is gone, so a test must not read them itself.
"""

import multiprocessing
from typing import Any

from ray import _raylet
from ray._private.state import GlobalState
from ray.core.generated import gcs_pb2

_ANSWER_SECONDS = 5
"""A server that is gone gives no answer."""


class ServerTables:
    """Process that reads the tables of one server."""

    def __init__(self, address: str) -> None:
        self._pool = multiprocessing.get_context("spawn").Pool(1, _connect, (address,))

    def controllers_ended(self) -> bool | None:
        """Return whether one of Ray Train's controllers has ended; None without an answer in time."""
        return self._ask(_controllers_ended)

    def left_behind(self) -> list[str] | None:
        """Return the placement groups whose creator has ended; None without an answer in time."""
        return self._ask(_left_behind)

    def close(self) -> None:
        """End the process."""
        self._pool.terminate()
        self._pool.join()

    def _ask(self, question: Any) -> Any:
        try:
            return self._pool.apply_async(question).get(_ANSWER_SECONDS)
        except multiprocessing.TimeoutError:
            return None


_ROWS: Any = gcs_pb2
_TABLES: list[Any] = []
"""In the process: the accessor of the server's tables."""


def _connect(address: str) -> None:
    options: Any = _raylet
    make_state: Any = GlobalState
    state = make_state()
    state._initialize_global_state(
        options.GcsClientOptions.create(
            address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
        )
    )
    _TABLES.append(state._connect_and_get_accessor())


def _actors(state: str | None) -> list[Any]:
    return [_ROWS.ActorTableData.FromString(row) for row in _TABLES[0].get_actor_table(None, state)]


def _controllers_ended() -> bool:
    return any(one.class_name == "TrainController" for one in _actors("DEAD"))


def _left_behind() -> list[str]:
    dead = {one.actor_id for one in _actors(None) if one.state == _ROWS.ActorTableData.DEAD}
    groups = [_ROWS.PlacementGroupTableData.FromString(row) for row in _TABLES[0].get_placement_group_table()]
    return [
        f"group {one.placement_group_id.hex()}"
        for one in groups
        if one.state != _ROWS.PlacementGroupTableData.REMOVED and one.creator_actor_id in dead
    ]
