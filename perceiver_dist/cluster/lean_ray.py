"""A Ray that this process starts for one job: no more processes than it needs, and workers forked from a template.

Ray has no public options for these, so the parameters that `ray.init` makes are changed on their way to `Node`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from ray._private.node import Node
from ray._private.parameter import RayParams

from perceiver_dist.cluster import forked_worker
from perceiver_dist.cluster.surroundings import variables_of_cluster
from perceiver_dist.cluster.worker_template import take_template


@contextmanager
def lean_ray() -> Iterator[None]:
    """Change how a Ray is started in this context.

    It has no autoscaler, since it has one node, and no process that forwards the workers' output, which `QUIET` turns
    off in the driver. It leaves Ray's fixed ports to clusters. If there is a template, it forks the workers. What they
    look for in the environment is this Ray (`variables_of_cluster`), whatever else runs on the machine.
    """
    update, start_raylet = RayParams.update_if_absent, Node.start_raylet
    forks = take_template()

    def update_lean(params: Any, **values: Any) -> None:
        # `Node` sets these paths, from which Ray's other processes take the command of a worker.
        for name in ("worker_path", "setup_worker_path"):
            if forks and name in values:
                values[name] = forked_worker.__file__
        params.no_monitor = True
        params.include_log_monitor = False
        # A free one. On the default port the job agent of a cluster that is started beside this Ray would be missing.
        params.dashboard_agent_listen_port = 0
        update(params, **values)  # type: ignore[no-untyped-call] # Ray leaves it without types

    def start_raylet_here(node: Any, *arguments: Any, **options: Any) -> None:
        # The address is known once the server runs. Workers inherit the environment of the raylet.
        node._ray_params.env_vars = variables_of_cluster(node.gcs_address)
        start_raylet(node, *arguments, **options)

    with (
        patch.object(RayParams, "update_if_absent", update_lean),
        patch.object(Node, "start_raylet", start_raylet_here),
    ):
        yield
