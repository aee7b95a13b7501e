"""Ray's own tables: what is reserved on the cluster, by whom, and whether those still live.

They are read from the server to which this process is connected. `ray.util.state` would ask a dashboard, which a run
may lack, and which it looks for on the whole machine: it takes that of the last `ray start`, living or not, and refuses
to choose if two Rays run there. Ray 2.60 has no public function for the actor that made a placement group.
"""

import json
import secrets
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2 as generated
from ray.util.placement_group import PlacementGroup, remove_placement_group

from perceiver_dist.cluster.resources import Bundle

_rows: Any = generated  # Generated code has no types.

_MARK = " #"
"""Between what a reservation is for and the letters that make its name unique."""
_LONGEST_COMMAND = 60
"""Characters of a job's command that are shown."""


@dataclass(frozen=True)
class Reservation:
    """A placement group of Ray: resources that somebody has, or waits for.

    Attributes:
        id: Its id, in hexadecimal digits.
        name: What it is for, such as "run 'demo' (workers)"; "" if its creator gave it no name.
        job: Id of the job that made it.
        bundles: The resources, each bundle on one node.
        placed: Whether it has them; otherwise it waits for them.
        abandoned: Whether nobody holds it any more: the actor that made it has ended. Ray keeps it while the job lives.
    """

    id: str
    name: str
    job: str
    bundles: tuple[Bundle, ...]
    placed: bool
    abandoned: bool


def reservation_name(purpose: str) -> str:
    """Return a name for a placement group; Ray wants it to be unique.

    Args:
        purpose: What it is for, as in `Reservation.name`.
    """
    return f"{purpose}{_MARK}{secrets.token_hex(4)}"


def this_job() -> str:
    """Return the id of this process's job."""
    job: str = ray.get_runtime_context().get_job_id()
    return job


def reservations() -> list[Reservation]:
    """Return all placement groups of the cluster that exist, of all jobs.

    Raises:
        RayError: The cluster does not answer.
    """
    rows = [_rows.PlacementGroupTableData.FromString(row) for row in _accessor().get_placement_group_table()]
    return [_reservation(row) for row in rows if row.state != _rows.PlacementGroupTableData.REMOVED]


def _reservation(row: Any) -> Reservation:
    # Ray itself removes those of drivers that have ended. Detached ones are meant to outlive whoever made them.
    made_by_actor = row.creator_actor_id and not ray.ActorID(row.creator_actor_id).is_nil()
    ended = bool(made_by_actor and row.creator_actor_dead and not row.is_detached)
    return Reservation(
        row.placement_group_id.hex(),
        row.name.partition(_MARK)[0],
        row.creator_job_id.hex(),
        tuple(dict(bundle.unit_resources) for bundle in row.bundles),
        row.state in (_rows.PlacementGroupTableData.CREATED, _rows.PlacementGroupTableData.PREPARED),
        ended,
    )


def give_back(reservation: Reservation) -> None:
    """Release the resources of a placement group.

    Args:
        reservation: One that nobody holds.
    """
    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(reservation.id))))


def job_names() -> dict[str, str]:
    """Return how to name each job of the cluster, such as "job 02000000 (python train.py, process 71 on 10.0.0.5)".

    Raises:
        RayError: The cluster does not answer.
    """
    return {row.job_id.hex(): _job_name(row) for row in _jobs()}


def _jobs() -> list[Any]:
    # What it leaves out takes a question to each job.
    rows = _accessor().get_job_table(skip_submission_job_info_field=True, skip_is_running_tasks_field=True)
    return [_rows.JobTableData.FromString(row) for row in rows]


def _job_name(row: Any) -> str:
    command = row.entrypoint
    if len(command) > _LONGEST_COMMAND:
        command = f"{command[:_LONGEST_COMMAND]}..."
    process = f"process {row.driver_pid} on {row.driver_address.ip_address}"
    parts = [command, process, "which has ended" if row.is_dead else ""]
    return f"job {row.job_id.hex()} ({', '.join(part for part in parts if part)})"


def nodes_being_added() -> int:
    """Return how many nodes the autoscaler has requested that have not joined yet; 0 without an autoscaler."""
    # Ray 2.60 has no public function for this. `ray status` reads the same sources.
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    return sum((report.get("pending_launches") or {}).values()) + len(report.get("pending_nodes") or [])


def _accessor() -> Any:
    connection: Any = state
    return connection._connect_and_get_accessor()
