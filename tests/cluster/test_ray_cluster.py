"""A run and its cluster: what it waits for, what it says meanwhile, and when it gives up."""

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
from ray.util.placement_group import placement_group, remove_placement_group

from perceiver_dist.cluster import ray_cluster
from perceiver_dist.config.run_config import RunConfig, StorageConfig
from perceiver_dist.errors import UserError
from perceiver_dist.training.prepare import resolve


def config_for(workers: int, **train: object) -> RunConfig:
    """A run of so many workers with half a CPU each; its two sources and evaluation read with three CPUs."""
    options = {"num_workers": workers, "lanes": workers, "cpus_per_worker": 0.5, **train}
    return replace(CONFIG, train=replace(CONFIG.train, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "enough"),
    [
        ([{"CPU": 3.0}, {"CPU": 1.0, "GPU": 1.0}], True),
        ([{"CPU": 4.0}, {"GPU": 1.0}], False),
        ([{"CPU": 1.0, "GPU": 1.0}], False),
        ([], False),
    ],
)
def test_bundles_fit_where_there_is_enough_and_a_node_for_each(
    nodes: list[dict[str, float]], enough: bool
) -> None:
    assert ray_cluster.fits([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], nodes) == enough


@pytest.mark.usefixtures("ray_cluster")
def test_where_there_is_room_nothing_is_said() -> None:
    said: list[str] = []
    ray_cluster.wait_for_capacity(config_for(2), said.append)
    assert said == []


@pytest.mark.usefixtures("ray_cluster")
def test_the_room_is_given_back() -> None:
    for _ in range(3):
        ray_cluster.wait_for_capacity(config_for(6), lambda _: None)


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_too_small_is_named_with_what_it_has_and_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_cluster, "_MAX_WAIT_SECONDS", 0.0)
    with pytest.raises(
        UserError,
        match=r"too small: 4 CPUs and 2 GPUs are needed .*, it has 6 CPUs and 0 GPUs, and no node is being added; "
        r"let it grow further \(max_workers in its YAML\), or lower train.num_workers",
    ):
        ray_cluster.wait_for_capacity(config_for(2, gpus_per_worker=1), lambda _: None)


@pytest.mark.usefixtures("ray_cluster")
def test_other_work_is_waited_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_MAX_WAIT_SECONDS", 1.0)
    other = placement_group([{"CPU": 3.0}])
    ray.get(other.ready())
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        remove_placement_group(other)

    ray_cluster.wait_for_capacity(config_for(2), say)
    assert said == [
        "waiting for 4 CPUs; the cluster has 6 CPUs and 0 GPUs: other work holds them, or the cluster is to grow"
    ]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("options", "hints"), [({}, 1), ({"device": "cpu"}, 0), ({"gpus_per_worker": 0}, 0)])
def test_a_cluster_that_may_have_gpus_later_is_not_trained_on_without_a_word(
    options: dict[str, object], hints: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    said: list[str] = []
    ray_cluster.wait_for_capacity(config_for(2, **options), said.append)
    line = "training on CPUs, since the cluster has no GPUs now; if it can add some, set train.gpus_per_worker to 1"
    assert said == [line] * hints


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("options", "gpus", "device"),
    [
        ({}, 0, "cpu"),
        ({"device": "cuda"}, 1, "cuda"),
        ({"gpus_per_worker": 1}, 1, "cuda"),
        ({"gpus_per_worker": 1, "device": "cpu"}, 1, "cpu"),
    ],
)
def test_gpus_are_asked_for_before_there_are_any(options: dict[str, object], gpus: int, device: str) -> None:
    config = config_for(2, **options)
    assert (ray_cluster.gpus_per_worker(config), ray_cluster.device_type(config)) == (gpus, device)


def test_an_address_without_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"RAY_ADDRESS is '127.0.0.1:9', where no cluster lets this job in"):
        ray_cluster.start_ray(1)


@pytest.mark.parametrize(
    ("working_dir", "folder", "kept"),
    [
        ("gcs://_ray_pkg_1234.zip", "runs", False),
        ("gcs://_ray_pkg_1234.zip", "../runs", True),
        ("local:///opt/project", "runs", True),
        (None, "runs", True),
    ],
)
def test_runs_are_not_kept_where_ray_deletes_them(
    working_dir: str | None, folder: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    runtime_env = {"working_dir": working_dir} if working_dir else {}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env}))
    refused = pytest.raises(
        UserError, match=r"storage.path is '.*/copy/runs', in the copy .* Ray deletes after the job"
    )
    with nullcontext() if kept else refused:
        resolve(replace(CONFIG, storage=StorageConfig(path=folder)))


def test_a_ray_started_here_listens_on_this_machine_only() -> None:
    code = """
import json, psutil
from perceiver_dist.cluster.ray_cluster import start_ray
start_ray(2, dashboard=True)
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
listening = [
    connection.laddr.ip
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
    assert set(json.loads(found.stdout.splitlines()[-1])) == {"127.0.0.1", "::ffff:127.0.0.1"}
