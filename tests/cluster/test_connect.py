"""Tests of connecting to Ray: unreachable clusters, folders that Ray deletes, and the addresses that Ray listens on."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ranks import CONFIG

from perceiver_dist.cluster.connect import start_ray
from perceiver_dist.config.run_config import StorageConfig
from perceiver_dist.errors import UserError
from perceiver_dist.training.prepare import resolve


def test_an_address_without_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"RAY_ADDRESS is '127.0.0.1:9', where no cluster accepts this job"):
        start_ray(1, print)


@pytest.mark.parametrize(
    ("working_dir", "folder", "kept"),
    [
        ("gcs://_ray_pkg_1234.zip", "runs", False),
        ("gcs://_ray_pkg_1234.zip", "../runs", True),
        ("local:///opt/project", "runs", True),
        (None, "runs", True),
    ],
)
def test_a_folder_that_ray_deletes_after_the_job_is_rejected(
    working_dir: str | None, folder: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    runtime_env = {"working_dir": working_dir} if working_dir else {}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env}))
    rejected = pytest.raises(
        UserError, match=r"storage.path is '.*/copy/runs', in the copy .* Ray deletes after the job"
    )
    with nullcontext() if kept else rejected:
        resolve(replace(CONFIG, storage=StorageConfig(path=folder)))


def test_a_ray_started_here_listens_on_loopback_only_and_leaves_the_ports_of_a_cluster_free() -> None:
    code = """
import json, psutil
from perceiver_dist.cluster.connect import start_ray
start_ray(2, print)
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = [
    connection.laddr
    for process in processes
    for connection in process.net_connections("inet")
    if connection.status == psutil.CONN_LISTEN
]
print(json.dumps(sorted(set(listening))))
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    addresses = json.loads(found.stdout.splitlines()[-1])
    assert {address for address, _ in addresses} == {"127.0.0.1", "::ffff:127.0.0.1"}
    # Ray's fixed ports: server, clients, dashboard, agent of jobs. Someone may start a cluster beside the run.
    assert not {port for _, port in addresses} & {6379, 10001, 8265, 52365}


@pytest.mark.runs
def test_a_ray_that_does_not_start_in_time_is_started_again_with_a_template() -> None:
    code = """
import json, os, threading, time
import psutil, ray
from perceiver_dist.cluster import worker_template
from perceiver_dist.cluster.connect import start_ray

def kill_raylet():
    while not (raylets := [child for child in psutil.Process().children() if child.name() == "raylet"]):
        time.sleep(0.01)
    raylets[0].kill()

worker_template.start_template(worker_template.TemplateImports((), ("ray",), (), ()))
threading.Thread(target=kill_raylet).start()
lines = []
start_ray(2, lines.append)
[template] = worker_template._USED
forked = ray.get(ray.remote(lambda: os.getppid()).remote()) == template.pid
print(json.dumps([lines, forked, sorted(child.name() for child in psutil.Process().children())]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    lines, forked, children = json.loads(ended.stdout.splitlines()[-1])
    assert lines == ["Ray did not start within its limit of 30 seconds (1 of 3); trying again"]
    assert forked
    assert [name for name in children if not name.startswith("python")] == ["gcs_server", "raylet"]
    assert "Traceback" not in ended.stderr
