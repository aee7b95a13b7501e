"""Runs whose folder becomes read-only, whose /dev/shm is small or full, and whose server has no name for a while."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import small_run
from disturbed_run import STEPPING
from faulty_proxy import wait
from remote_run import RangeServer

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig

PRIVATE = ("unshare", "--mount", "sh", "-c")
"""Runs a command with mounts of its own, which end with it."""


@pytest.fixture(scope="module", autouse=True)
def _mounts() -> None:
    allowed = subprocess.run([*PRIVATE, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("mounts of its own need root, or a machine that allows them")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    small_run.write_data(tmp_path / "data")
    return tmp_path / "data"


def start(config: RunConfig, mount: str = "") -> "subprocess.Popen[bytes]":
    """Start a job, perhaps after a command that mounts something for it only; its output goes to a file."""
    storage = Path(config.storage.path).parent
    name = config.storage.run_name
    (storage / f"{name}.yaml").write_text(to_yaml(config))
    job = f"exec {sys.executable} -u jobs/train_multimodal.py --config {storage}/{name}.yaml"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (storage / f"{name}.txt").open("a") as screen:
        return subprocess.Popen(
            [*PRIVATE, f"{mount} && {job}"] if mount else ["sh", "-c", job],
            env=environment,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
        )


def screen_of(config: RunConfig) -> str:
    return (Path(config.storage.path).parent / f"{config.storage.run_name}.txt").read_text()


def wait_for_steps(config: RunConfig, job: "subprocess.Popen[bytes]") -> None:
    """Return when the run takes steps."""
    while not STEPPING.search(screen_of(config)):
        assert job.poll() is None, screen_of(config)
        wait(0.2)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only for everybody who opens a file in it from now on."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.chaos
def test_a_run_whose_folder_becomes_read_only_trains_on_and_ends_with_one_line(
    data: Path, tmp_path: Path
) -> None:
    config = small_run.small_config(data, tmp_path / "runs", "locked", steps=200)
    config = replace(config, tracking=replace(config.tracking, uri=f"sqlite:///{tmp_path}/mlflow.db"))
    job = start(config)
    folder = RunFolder(str(tmp_path / "runs" / "locked"))
    while not folder.newest_step():
        assert job.poll() is None, screen_of(config)
        wait(0.2)
    with read_only(tmp_path / "runs"):
        assert job.wait() == 2, screen_of(config)
    assert "could not be written (Read-only file system); training continues" in screen_of(config)
    assert (
        screen_of(config)
        .strip()
        .splitlines()[-1]
        .startswith("error: run 'locked' ended as failed after step 200")
    )
    assert start(config).wait() == 0, screen_of(config)
    plain = small_run.small_config(data, tmp_path / "runs", "plain", steps=200)
    assert start(plain).wait() == 0, screen_of(plain)
    assert small_run.losses(tmp_path / "runs" / "locked") == small_run.losses(tmp_path / "runs" / "plain")


@pytest.mark.chaos
def test_a_run_with_little_shared_memory_completes(data: Path, tmp_path: Path) -> None:
    config = small_run.small_config(data, tmp_path / "runs", "small", steps=40)
    job = start(config, "mount -t tmpfs -o size=64m tmpfs /dev/shm")
    assert job.wait() == 0, screen_of(config)
    result = json.loads((tmp_path / "runs" / "small" / "result.json").read_text())
    assert (result["exit"], result["restarts"]) == ("completed", 0)


@pytest.mark.chaos
def test_shared_memory_that_others_fill_for_a_while_changes_nothing(data: Path, tmp_path: Path) -> None:
    plain = small_run.small_config(data, tmp_path / "runs", "plain", steps=300)
    assert start(plain).wait() == 0, screen_of(plain)
    config = small_run.small_config(data, tmp_path / "runs", "full", steps=300)
    job = start(config, "mount -t tmpfs -o size=128m tmpfs /dev/shm")
    wait_for_steps(config, job)
    # The mount is the job's own; this is the way in.
    memory = Path(f"/proc/{job.pid}/root/dev/shm")
    free = os.statvfs(memory)
    with (memory / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    wait(20)
    (memory / "filler").unlink()
    assert job.wait() == 0, screen_of(config)
    result = json.loads((tmp_path / "runs" / "full" / "result.json").read_text())
    assert (result["exit"], result["quarantined"]) == ("completed", 0), screen_of(config)
    assert small_run.losses(tmp_path / "runs" / "full") == small_run.losses(tmp_path / "runs" / "plain")


@pytest.mark.chaos
def test_a_name_that_does_not_resolve_for_a_while_costs_nothing_but_time(data: Path, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeServer, directory=str(data)))
    Thread(target=server.serve_forever, daemon=True).start()
    hosts = tmp_path / "hosts"
    known = "127.0.0.1 localhost store.example.invalid\n"
    hosts.write_text(known)
    config = small_run.small_config(data, tmp_path / "runs", "names", steps=300)
    squares = replace(
        config.sources[0],
        train_shards=f"http://store.example.invalid:{server.server_port}/squares/train-{{000000..000002}}.tar",
    )
    config = replace(config, sources=[squares, config.sources[1]])
    job = start(config, f"mount --bind {hosts} /etc/hosts")
    wait_for_steps(config, job)
    hosts.write_text("127.0.0.1 localhost\n")
    wait(20)
    hosts.write_text(known)
    assert job.wait() == 0, screen_of(config)
    server.shutdown()
    result = json.loads((tmp_path / "runs" / "names" / "result.json").read_text())
    assert (result["exit"], result["restarts"], result["quarantined"]) == ("completed", 0, 0)
