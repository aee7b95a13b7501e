"""SIGTERM to all processes of a job: Ray works on, the job's process is told, and the end of Ray is noticed."""

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.runs

SCRIPT = """
import json, os, signal, threading, time
import psutil, ray
from perceiver_dist.cluster import worker_template
from perceiver_dist.cluster.connect import start_ray
from perceiver_dist.cluster.termination import RayEndedError, TerminationWatch, leave_if_ray_has_ended

def blocked(process):
    status = open(f"/proc/{process.pid}/status").read()
    mask = int(status.partition("SigBlk:")[2].split()[0], 16)
    return bool(mask & 1 << signal.SIGTERM - 1)

before = signal.getsignal(signal.SIGTERM)
worker_template.start_template(worker_template.TemplateImports((), ("ray",), (), ()))
start_ray(2, print)
found = {"kept": signal.getsignal(signal.SIGTERM) is before, "own": blocked(psutil.Process())}

@ray.remote(num_cpus=0)
class Actor:
    def pid(self):
        return os.getpid()

actor = Actor.remote()
ray.get(actor.pid.remote())
everybody = psutil.Process().children(recursive=True)
found["not blocked"] = [process.name() for process in everybody if not blocked(process)]
told = threading.Event()
reasons = []
with TerminationWatch(told.set, lambda requested: reasons.append(requested)) as watch:
    for process in [psutil.Process(), *everybody]:
        process.send_signal(signal.SIGTERM)
    found["told"] = told.wait(30)
    found["answers"] = ray.get(actor.pid.remote()) in [process.pid for process in everybody]
    while True not in reasons:
        time.sleep(0.05)
ray.shutdown()
_, left = psutil.wait_procs([p for p in everybody if p.pid != worker_template._USED[0].pid], timeout=20)
found["left"] = [process.name() for process in left]

signal.signal(signal.SIGTERM, before)
start_ray(2, print)
actor = Actor.remote()
ray.get(actor.pid.remote())
try:
    with TerminationWatch(told.set, lambda _: None) as watch:
        for process in psutil.Process().children():
            if process.name() in ("raylet", "gcs_server"):
                process.kill()
        while True:
            time.sleep(0.05)
except KeyboardInterrupt:
    found["ended"] = isinstance(watch.reason, RayEndedError) and not watch.requested
print(json.dumps(found))
leave_if_ray_has_ended(7)
"""


@pytest.fixture(scope="module")
def ended() -> "subprocess.CompletedProcess[str]":
    """Run the script."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True, timeout=180
    )


@pytest.fixture(scope="module")
def found(ended: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return what the script has found."""
    assert ended.stdout, ended.stderr
    facts: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return facts


def test_every_process_of_a_ray_started_here_has_sigterm_blocked_but_not_the_job(
    found: dict[str, Any],
) -> None:
    assert found["not blocked"] == []
    assert not found["own"]
    assert found["kept"]


def test_after_a_sigterm_to_all_the_job_is_told_and_ray_works_on(found: dict[str, Any]) -> None:
    assert found["told"]
    assert found["answers"]


def test_ray_leaves_no_process_although_it_does_not_get_its_own_sigterm(found: dict[str, Any]) -> None:
    assert found["left"] == []


def test_the_end_of_ray_is_raised_and_the_process_ends_with_its_status(
    found: dict[str, Any], ended: "subprocess.CompletedProcess[str]"
) -> None:
    assert found["ended"]
    assert ended.returncode == 7
    assert "gcs" not in ended.stderr.lower()
    assert "Traceback" not in ended.stderr
