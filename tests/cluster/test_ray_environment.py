"""Addresses of Ray, long and unusable temporary folders, and variables that reach other nodes."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from perceiver_dist.cluster.surroundings import (
    cluster_address,
    forwarded_variables,
    use_short_temporary_folder,
)
from perceiver_dist.errors import UserError

SOCKET_BYTES = 107
RAY_SOCKET = "ray/session_2026-11-28_02-16-25_126772_4194304/sockets/plasma_store"


@pytest.mark.parametrize(
    ("value", "address"), [("", None), ("local", None), ("auto", "auto"), ("10.0.0.1:6379", "10.0.0.1:6379")]
)
def test_an_empty_or_local_address_starts_ray_here(
    monkeypatch: pytest.MonkeyPatch, value: str, address: str | None
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() == address


def test_rays_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(
        UserError, match=r"RAY_ADDRESS is 'ray://head:10001', of Ray's client, .*; submit the job"
    ):
        cluster_address()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_reached_by_a_short_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    folder = tmp_path / ("long" * 30)
    monkeypatch.setenv(variable, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    use_short_temporary_folder()
    short = Path(os.environ[variable])
    assert short.resolve() == folder
    assert len(f"{short}/{RAY_SOCKET}") <= SOCKET_BYTES
    use_short_temporary_folder()
    assert os.environ[variable] == str(short)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short}/a_socket")
    assert (folder / "a_socket").exists()


def test_the_longest_folder_that_fits_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as base:  # its length is known
        longest = f"{base}/{'x' * (SOCKET_BYTES - len(RAY_SOCKET) - len(base) - 2)}"
        monkeypatch.setenv("TMPDIR", longest)
        use_short_temporary_folder()
        assert os.environ["TMPDIR"] == longest


def test_a_link_ends_with_its_process(tmp_path: Path) -> None:
    code = "import os; from perceiver_dist.cluster.surroundings import *; use_short_temporary_folder()"
    code += "; print(os.environ['TMPDIR'])"
    environment = {**os.environ, "TMPDIR": f"{tmp_path}/{'long' * 30}"}
    command = [sys.executable, "-c", code]
    link = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert not Path(link).parent.exists()
    assert Path(environment["TMPDIR"]).is_dir()


def test_a_temporary_folder_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/file")
    with pytest.raises(
        UserError, match=r"TMPDIR is '.*/file', where no file can be made \(File exists\); set it to"
    ):
        use_short_temporary_folder()


def test_only_the_place_of_the_data_and_the_cluster_are_forwarded() -> None:
    job = {"runtime_env": {"env_vars": {"AWS_REGION": "eu-west-1"}}}
    environment = {
        "AWS_ENDPOINT_URL": "http://store",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HTTPS_PROXY": "http://user:password@proxy",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
    }
    assert forwarded_variables(environment, "10.0.0.5:6379") == {
        "AWS_ENDPOINT_URL": "http://store",
        "RAY_ADDRESS": "10.0.0.5:6379",
        "RAY_API_SERVER_ADDRESS": "",
    }
