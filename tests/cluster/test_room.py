"""Room of a cluster, with a real Ray: who holds it, what nobody holds, and what is said to those who wait for it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import ray
import waiting
from ray.util.placement_group import placement_group, remove_placement_group

from perceiver_dist.cluster import ray_tables, room_watch
from perceiver_dist.cluster.resources import text_of, total_of
from perceiver_dist.cluster.room import WaitLine
from perceiver_dist.cluster.room_watch import RoomWatch

pytestmark = pytest.mark.usefixtures("ray_cluster")

_MAX_WAIT_SECONDS = 120
"""Generous, as it only ends a test that would wait forever."""


wait_until = partial(waiting.wait_until, seconds=_MAX_WAIT_SECONDS)


@contextmanager
def reserved(cpus: float, name: str = "") -> Iterator[None]:
    """Reserve CPUs in this process."""
    group = placement_group([{"CPU": cpus}], name=ray_tables.reservation_name(name) if name else "")
    ray.get(group.ready())
    try:
        yield
    finally:
        remove_placement_group(group)


def start_trial() -> Any:
    """Start an actor that reserves room, to be killed. Its classes are local, so that Ray sends them by value."""

    class Trial:
        def reserve(self, cpus: float, name: str, ready: bool = True) -> None:
            """Make a placement group, and wait for it."""
            group = placement_group([{"CPU": cpus}], name=name)
            if ready:
                ray.get(group.ready())

    actor: Any = ray.remote(num_cpus=0)(Trial)
    return actor.remote()


def own() -> dict[str, ray_tables.Reservation]:
    """The placement groups of this job, by name."""
    return {one.name: one for one in ray_tables.reservations() if one.job == ray_tables.this_job()}


def test_what_a_killed_actor_has_reserved_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_watch, "_SECONDS_BETWEEN_LOOKS", 0.1)
    trial = start_trial()
    ray.get(trial.reserve.remote(2, "trial 'shapes/trial-001' (workers)"))
    with reserved(1, "trial 'shapes/trial-002' (workers)"):
        ray.kill(trial)
        wait_until(lambda: own()["trial 'shapes/trial-001' (workers)"].abandoned)
        lines: list[str] = []
        with RoomWatch(lines.append):
            wait_until(lambda: len(own()) == 1)
        assert list(own()) == ["trial 'shapes/trial-002' (workers)"], "what somebody holds is left alone"
    assert lines == []


def test_a_trial_that_waits_says_for_what_and_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_watch, "_SECONDS_OF_A_USUAL_WAIT", 0.0)
    monkeypatch.setattr(room_watch, "_SECONDS_BETWEEN_LOOKS", 0.1)
    trial, lines = start_trial(), list[str]()
    with reserved(5, "trial 'shapes/trial-001' (workers)"):
        ray.get(trial.reserve.remote(3, "trial 'shapes/trial-002' (capacity)", ready=False))
        with RoomWatch(lines.append):
            wait_until(lambda: lines)
    wait_until(lambda: own()["trial 'shapes/trial-002' (capacity)"].placed)
    assert lines[0] == (
        "trial 'shapes/trial-002' (capacity) waits for 3 CPUs; the cluster has 6 CPUs, free: 1 CPU; trial "
        "'shapes/trial-001' (workers) holds 5 CPUs"
    )
    ray_tables.give_back(own()["trial 'shapes/trial-002' (capacity)"])
    ray.kill(trial)


def test_a_line_is_shown_when_it_changes_and_not_twice() -> None:
    lines: list[str] = []
    line = WaitLine("waiting for", lines.append)
    with reserved(4, "run 'a' (workers)"):
        line.show([{"CPU": 3.0}])
        line.show([{"CPU": 3.0}])
        assert len(lines) == 1
        with reserved(1, "run 'b' (workers)"):
            line.show([{"CPU": 3.0}])
    assert len(lines) == 2
    assert lines[1].endswith("run 'a' (workers) holds 4 CPUs; run 'b' (workers) holds 1 CPU")


OTHER_JOB = """
import sys, ray
from ray.util.placement_group import placement_group
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=0)
class Maker:
    def make(self):
        ray.get(placement_group([{"CPU": 2}], name="theirs").ready())

maker = Maker.remote()
ray.get(maker.make.remote())
if sys.argv[2] == "killed":
    ray.kill(maker)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["held", "killed"])
def test_room_of_another_job_is_named_and_what_nobody_holds_there_is_said(state: str) -> None:
    address = ray.get_runtime_context().gcs_address
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", OTHER_JOB, address, state]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"

        def theirs() -> ray_tables.Reservation:
            [one] = [one for one in ray_tables.reservations() if one.name == "theirs"]
            return one

        wait_until(lambda: theirs().abandoned == (state == "killed"))
        lines: list[str] = []
        WaitLine("waiting for", lines.append).show([{"CPU": 6.0}])
        name = ray_tables.job_names()[theirs().job]
        job.kill()
    wait_until(lambda: all(one.name != "theirs" for one in ray_tables.reservations()))
    assert f"process {job.pid} on" in name
    who = f"nobody (theirs of {name}, which an actor that has ended has left behind)"
    expected = who if state == "killed" else f"theirs of {name}"
    assert f"; {expected} holds 2 CPUs" in lines[0]


def test_text_and_sum_of_resources() -> None:
    assert text_of(total_of([{"CPU": 0.5}, {"CPU": 0.5, "GPU": 2.0}, {"memory": 2.0**30}])) == (
        "1 CPU and 2 GPUs and 1 GiB of memory"
    )


LOOK = """
import json, sys, ray
from perceiver_dist.cluster.connect import start_ray
from ray._private.services import canonicalize_bootstrap_address_or_die
start_ray(1, print)
found = ray.get(ray.remote(canonicalize_bootstrap_address_or_die).remote(None), timeout=120)
print(json.dumps([found, ray.get_runtime_context().gcs_address]))
"""


@pytest.mark.parametrize("joins", [False, True], ids=["starts its own Ray", "joins a cluster"])
def test_a_worker_finds_its_own_cluster_beside_others(joins: bool, tmp_path_factory: Any) -> None:
    # Ray's file of the machine's current cluster, which names one that is gone. The Ray of this session lives, too.
    folder = tmp_path_factory.mktemp("t")
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    environment: dict[str, str] = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_TMPDIR": str(folder),
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
    }
    if joins:
        environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    found = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=True
    )
    lookup, own_address = json.loads(found.stdout.splitlines()[-1])
    assert lookup == own_address


def test_a_submitted_job_belongs_to_the_cluster_that_started_it() -> None:
    """It descends from a raylet of that cluster, whatever RAY_ADDRESS says."""
    code = "from perceiver_dist.cluster.surroundings import submitting_cluster; print(submitting_cluster())"

    def descendant(**variables: str) -> str:
        environment = {**os.environ, **variables}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        return run.stdout.strip()

    # A variable that a fork cannot have after its imports: workers of a Ray of its own descend from the template.
    task: Any = ray.remote(runtime_env={"env_vars": {"STARTED_BY": "the raylet"}})(descendant)
    assert ray.get(task.remote(RAY_JOB_CONFIG_JSON_ENV_VAR="{}")) == ray.get_runtime_context().gcs_address
    assert ray.get(task.remote()) == "None"
    assert descendant(RAY_JOB_CONFIG_JSON_ENV_VAR="{}") == "None"
