"""Ray workers forked from a template: which are, which are not, and what they do not share."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from perceiver_dist.cluster.forked_worker import _forkable_variables

SCRIPT = """
import json, os, socket
import psutil, ray
from perceiver_dist.cluster import worker_template
from perceiver_dist.cluster.ray_tables import nodes_being_added
from perceiver_dist.cluster.connect import start_ray

modules = worker_template.TemplateImports(("numpy",), ("ray.data",), (), ())
worker_template.start_template(modules)
start_ray(2, print)
assert nodes_being_added() == 0  # there is no autoscaler to ask
template = psutil.Process(worker_template._USED[0].pid)

@ray.remote(num_cpus=0)
class Actor:
    def facts(self):
        return {
            "parent": os.getppid(),
            "group is own": os.getpgid(0) == os.getpid(),
            "variables": [os.environ.get("RAY_MINE"), os.environ.get("OTHER")],
            "id": ray.put(0).hex() + ray.NodeID.from_random().hex(),
            "random": __import__("numpy").random.rand(),
        }

def facts(**variables):
    options = {"runtime_env": {"env_vars": variables}} if variables else {}
    actor = Actor.options(**options).remote()
    found = ray.get(actor.facts.remote())
    found["forked"] = found["parent"] == template.pid
    return found

with socket.socket(socket.AF_UNIX) as connection:  # a worker that is killed before it has asked
    connection.connect(os.environ["WORKER_TEMPLATE_SOCKET"])
plain = [facts(), facts()]
of_ray, of_others = facts(RAY_MINE="a b"), facts(OTHER="1")
template.kill()
template.wait()
without = facts(RAY_MINE="later")
ray.shutdown()
start_ray(2, print)
next_ray = facts()
assert not next_ray["forked"]
print(json.dumps([plain, of_ray, of_others, without]))
"""


@pytest.fixture(scope="module")
def found() -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def test_workers_are_forked_from_the_template(found: Any) -> None:
    (first, second), _, _, _ = found
    assert [first["forked"], second["forked"]] == [True, True]
    assert first["group is own"]


def test_forks_draw_different_random_numbers(found: Any) -> None:
    (first, second), _, _, _ = found
    assert first["id"] != second["id"]
    assert first["random"] != second["random"]


def test_a_fork_has_the_variables_of_its_runtime_environment(found: Any) -> None:
    _, of_ray, _, _ = found
    assert of_ray["forked"]
    assert of_ray["variables"] == ["a b", None]


def test_ray_starts_a_worker_whose_variables_may_matter_to_imports(found: Any) -> None:
    _, _, of_others, _ = found
    assert not of_others["forked"]
    assert of_others["variables"] == [None, "1"]


def test_ray_starts_the_workers_if_the_template_is_gone(found: Any) -> None:
    *_, without = found
    assert not without["forked"]
    assert without["variables"] == ["later", None]


def test_a_template_whose_generator_was_used_is_recognised() -> None:
    code = """
import ray
from perceiver_dist.cluster.worker_template import _forks_differ
before = _forks_differ()
ray.NodeID.from_random()
print(before, _forks_differ())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False"]


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, {}),
        ({"env_vars": {"RAY_A": "1"}, "command_prefix": []}, {"RAY_A": "1"}),
        ({"env_vars": {"PL_DISABLE_FORK": "1"}}, {"PL_DISABLE_FORK": "1"}),
        ({"py_executable": sys.executable}, {}),
        ({"env_vars": {"RAY_A": "$HOME"}}, None),
        ({"env_vars": {"OMP_NUM_THREADS": "1"}}, None),
        ({"command_prefix": ["nsys"]}, None),
        ({"py_executable": "/other/python"}, None),
    ],
)  # fmt: skip
def test_a_runtime_environment_is_for_a_fork_if_it_only_sets_variables_of_ray(
    context: dict[str, Any], expected: dict[str, str] | None
) -> None:
    assert _forkable_variables(context) == expected
