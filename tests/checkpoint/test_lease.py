"""The lease on a run's folder: who gets it, who is refused, and who finds out that it is gone."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from perceiver_dist.checkpoint.lease import LEASE, Lease, LeaseLostError
from perceiver_dist.errors import UserError
from pipelines.storage.files import join, list_folder, read_text, write_text

HOLDER = """
import sys, threading
from perceiver_dist.checkpoint.lease import Lease

with Lease(sys.argv[1], "run 'x'", "storage.run_name", print, 0.05, 0.2) as lease:
    print("held", flush=True)
    while lease.loss is None:
        threading.Event().wait(0.01)
    print(lease.loss, flush=True)
"""


def lease(folder: str, lines: list[str] | None = None, between_renewals: float = 0.05) -> Lease:
    """Return a lease with short times."""
    shown = [] if lines is None else lines
    return Lease(folder, "run 'x'", "storage.run_name", shown.append, between_renewals, 0.2)


def fields(folder: str) -> dict[str, Any]:
    """Return what the lease in a folder says."""
    found: dict[str, Any] = json.loads(read_text(join(folder, LEASE)) or "{}")
    return found


def change(folder: str, **values: Any) -> None:
    """Change what the lease in a folder says."""
    write_text(join(folder, LEASE), json.dumps({**fields(folder), **values}))


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an empty folder on a disk and on a storage without renames."""
    fsspec.filesystem("memory").store.clear()
    return str(tmp_path / "run") if request.param == "disk" else "memory://bucket/run"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start another process that holds the lease on the folder tmp_path/run."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lease_is_given_back(folder: str) -> None:
    with lease(folder) as held:
        held.confirm()
        assert fields(folder)["pid"] == os.getpid()
    assert not Path(folder).exists()  # as before: nothing was written


def test_a_stopped_job_learns_of_its_successor_even_after_that_has_ended(
    holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    with lease(folder):
        pass
    lines: list[str] = []
    with lease(folder, lines):
        pass
    assert lines == []  # nobody waits for a job that has ended
    holder.send_signal(signal.SIGCONT)
    assert holder.stdout
    assert f"run 'x' was taken over by process {os.getpid()}" in holder.stdout.readline()
    assert fields(folder)["released"]


def test_a_lease_is_given_back_after_an_error(folder: str) -> None:
    with pytest.raises(KeyError), lease(folder):
        raise KeyError
    assert LEASE not in list_folder(folder)


def test_a_process_that_lives_here_keeps_others_out_and_a_killed_one_does_not(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    lines: list[str] = []
    refusal = (
        rf"^run 'x' is being written by process {holder.pid} on \S+ since 20\S+ \S+ UTC; .*kill {holder.pid}"
    )
    with pytest.raises(UserError, match=refusal), lease(str(tmp_path / "run"), lines):
        pass
    holder.kill()
    holder.wait()
    with lease(str(tmp_path / "run"), lines) as held:
        held.confirm()
    assert not lines  # nobody has waited


def test_another_process_with_the_number_of_a_dead_holder_does_not_count(folder: str) -> None:
    with lease(folder):
        left = fields(folder)
    write_text(join(folder, LEASE), json.dumps({**left, "started": left["started"] - 1}))
    with lease(folder) as held:
        held.confirm()


def test_a_lease_of_another_machine_is_over_when_nobody_renews_it(folder: str) -> None:
    with lease(folder):
        left = fields(folder)
    write_text(join(folder, LEASE), json.dumps({**left, "machine": "another", "host": "far", "id": "other"}))
    lines: list[str] = []
    with lease(folder, lines) as held:
        held.confirm()
    (line,) = lines
    assert f"run 'x' was last written by process {os.getpid()} on far since" in line
    assert "waiting 0 s to see whether that has ended" in line


def test_a_lease_of_another_machine_that_is_renewed_keeps_others_out(folder: str) -> None:
    with lease(folder):
        left = fields(folder)
    ended = threading.Event()

    def renew() -> None:
        renewals = 1
        while not ended.wait(0.02):
            renewals += 1
            other = {**left, "machine": "another", "host": "far", "id": "other", "renewals": renewals}
            write_text(join(folder, LEASE), json.dumps(other))

    write_text(join(folder, LEASE), json.dumps({**left, "machine": "another", "host": "far", "id": "other"}))
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with (
            pytest.raises(UserError, match=r"on far since .*; wait until that has ended, end it"),
            lease(folder),
        ):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_lease_that_cannot_be_read_is_waited_for(folder: str) -> None:
    write_text(join(folder, LEASE), "{")
    lines: list[str] = []
    with lease(folder, lines):
        pass
    assert lines[0].startswith("run 'x' was last written by an unknown process; waiting")


def test_the_first_of_two_that_take_it_at_once_is_told(folder: str) -> None:
    # No renewal meanwhile: one that has looked just before would write over the change.
    with lease(folder, between_renewals=3600) as held:
        change(folder, id="other", pid=7, host="far")
        with pytest.raises(LeaseLostError, match=r"^run 'x' was taken over by process 7 on far since"):
            held.confirm()
    assert fields(folder)["id"] == "other"  # the lease of the other is left alone


def test_a_lease_that_somebody_deleted_is_written_again(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    with lease(folder) as held:
        (tmp_path / "run" / LEASE).unlink()
        held.confirm()
        while LEASE not in list_folder(folder):
            threading.Event().wait(0.01)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with (
        pytest.raises(UserError, match=r"lease.json cannot be read and written \("),
        lease(str(tmp_path / "run")),
    ):
        pass


@pytest.mark.parametrize("machine", ["this", "another"])
def test_a_process_that_was_stopped_is_replaced_after_its_time_and_finds_out(
    tmp_path: Path, holder: "subprocess.Popen[str]", machine: str
) -> None:
    folder = str(tmp_path / "run")
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    if machine == "another":
        change(folder, machine="another")
    lines: list[str] = []
    with lease(folder, lines) as held:
        assert [line.partition("; ")[2] for line in lines] == ["waiting 0 s to see whether that has ended"]
        holder.send_signal(signal.SIGCONT)
        assert holder.stdout
        assert f"run 'x' was taken over by process {os.getpid()} on" in holder.stdout.readline()
        held.confirm()


def test_a_fence_holds_until_another_job_takes_the_lease(folder: str) -> None:
    with lease(folder) as held:
        held.fence.check()
        fence = pickle.loads(pickle.dumps(held.fence))  # noqa: S301 # from this process
        fence.check()
        before = held.fence
        before.check()
        change(folder, id="another", host="elsewhere")
        # Looked at less than five seconds ago.
        before.check()
        with pytest.raises(LeaseLostError, match=r"run 'x' was taken over by process \d+ on elsewhere"):
            held.fence.check()
        change(folder, id=fields(folder)["id"])


def test_a_fence_survives_a_deleted_lease_and_a_storage_that_is_away(tmp_path: Path) -> None:
    with lease(str(tmp_path / "run")) as held:
        (tmp_path / "run" / LEASE).unlink()
        held.fence.check()
