"""Shards on real web servers that send ranges or none, say a length or none, compress, redirect, sign or forbid."""

import gzip
import re
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
from fsspec.asyn import sync
from tar_files import tar_bytes

from pipelines.errors import ShardError
from pipelines.shards.sample_reader import read_samples
from pipelines.shards.shard_index import SourceIndex, find_index, index_shard
from pipelines.shards.source import DataConfig
from pipelines.storage import web_file

SHARD = tar_bytes([(f"{key}.cls", key.encode() * 3000) for key in "abc"])
SAMPLES = [b"c" * 3000, b"a" * 3000]


class OddServer(BaseHTTPRequestHandler):
    """Web server of SHARD. The first folder of an address says how it behaves."""

    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, str]]
    content = SHARD

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.requests.append((self.path, self.headers.get("Range", "")))
        answers: dict[str, Callable[[], None]] = {
            "/ranges": self._ranges,
            "/whole": self._whole,
            "/unknown": self._chunked,
            "/until_closed": self._until_closed,
            "/compressed": self._compressed,
            "/moved": partial(self._redirect, "/signed/x.tar?sig=right"),
            "/signed": partial(self._signed, parse_qs(url.query)),
        }
        answers[url.path.rpartition("/")[0]]()

    def do_HEAD(self) -> None:
        self.send_error(403)  # as S3 answers it where an address is signed for GET

    def _ranges(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(self.content) - 1)
        part = self.content[first : last + 1]
        total = f"{first}-{first + len(part) - 1}/{len(self.content)}"
        self._send(206 if wanted else 200, part, {"Content-Range": f"bytes {total}"} if wanted else {})

    def _whole(self) -> None:
        self._send(200, self.content, {"ETag": '"1"'})

    def _chunked(self) -> None:
        content = b"%x\r\n" % len(self.content) + self.content + b"\r\n0\r\n\r\n"
        self._send(200, content, {"Transfer-Encoding": "chunked"})

    def _until_closed(self) -> None:
        self.close_connection = True
        self._send(200, self.content, {"Connection": "close"})

    def _compressed(self) -> None:
        # Also if asked for a range, or for no compression.
        content = gzip.compress(self.content)
        self._send(200, content, {"Content-Encoding": "gzip", "Content-Length": str(len(content))})

    def _redirect(self, target: str) -> None:
        self._send(302, b"", {"Location": target})

    def _signed(self, query: dict[str, list[str]]) -> None:
        if query.get("sig") in (["right"], ["renewed"]):
            self._ranges()
        else:
            self._send(403, b"", {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        if not {"Transfer-Encoding", "Connection"} & set(headers):
            headers = {"Content-Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Web:
    """A running server: its address, the requests that it has seen, and what it serves."""

    def __init__(self, port: int, handler: type[OddServer]) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.handler = handler

    @property
    def transfers(self) -> int:
        """Number of requests for the whole file."""
        return sum(wanted == "" for _, wanted in self.handler.requests)


class QuietServer(ThreadingHTTPServer):
    """Server that does not report clients that hang up, as those do that only want to see a header."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Report nothing."""


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Start a server; copies of its files go to a folder of the test."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    handler = type("Handler", (OddServer,), {"requests": []})
    server = QuietServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield Web(server.server_port, handler)
    server.shutdown()
    server.server_close()


def read(uri: str, folder: Path, seconds: float = 20) -> list[bytes]:
    """Index a shard and read its samples 2 and 0."""
    index = SourceIndex([index_shard(uri, str(folder / "index"), seconds)])
    samples = read_samples(index, [2, 0], frozenset({"cls"}), DataConfig(storage_seconds=seconds))
    return [sample.fields["cls"] for sample in samples]


@pytest.mark.parametrize("path", ["ranges/x.tar", "ranges/x.tar?download=1&x=a+b%2Fc", "moved/x.tar"])
def test_ranges_are_read_without_a_copy(web: Web, tmp_path: Path, path: str) -> None:
    assert read(f"{web.address}/{path}", tmp_path) == SAMPLES
    assert web.transfers == 0
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("path", ["whole", "unknown", "until_closed", "compressed"])
def test_a_server_without_ranges_or_a_length_sends_each_shard_once(
    web: Web, tmp_path: Path, path: str
) -> None:
    assert read(f"{web.address}/{path}/x.tar", tmp_path) == SAMPLES
    assert read(f"{web.address}/{path}/x.tar", tmp_path / "again") == SAMPLES
    assert web.transfers == 1


def test_one_process_of_many_makes_the_copy(web: Web) -> None:
    found = web_file.look_up(f"{web.address}/unknown/x.tar")
    copies: list[bytes] = []

    def copy() -> None:
        copies.append(web_file.whole_copy(f"{web.address}/unknown/x.tar", found, 10).read_at(len(SHARD), 0))

    threads = [Thread(target=copy) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert copies == [SHARD] * 8
    assert web.transfers == 1


def test_a_copy_that_was_cut_off_is_not_kept(web: Web, tmp_path: Path) -> None:
    web.handler.content = SHARD[:4000]
    uri = f"{web.address}/until_closed/x.tar"
    with pytest.raises(ShardError, match="truncated"):
        read(uri, tmp_path)
    web.handler.content = SHARD
    assert read(uri, tmp_path) == SAMPLES


def test_copies_that_were_not_used_for_a_day_make_room(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{web.address}/unknown/x.tar"
    found = web_file.look_up(uri)
    first = web_file.whole_copy(uri, found, 10)
    monkeypatch.setattr(web_file, "_KEEP_FREE", 1 << 62)
    with pytest.raises(ShardError) as caught:
        web_file.whole_copy(f"{uri}?2", found, 10)
    assert str(caught.value).startswith(
        f"shard {uri}?2: its server sends no byte ranges, so it is copied as a"
    )
    monkeypatch.setattr(web_file, "_UNUSED_SECONDS", -1.0)
    with pytest.raises(ShardError):
        web_file.whole_copy(f"{uri}?2", found, 10)
    assert first.read_at(9, 0) == SHARD[:9]  # it was open
    [folder] = (tmp_path / "tmp").iterdir()
    assert not [file for file in folder.iterdir() if not file.suffix]


def test_a_signature_is_used_and_never_shown(web: Web, tmp_path: Path) -> None:
    uri = f"{web.address}/signed/x.tar?sig=right"
    assert read(uri, tmp_path) == SAMPLES
    [file] = (tmp_path / "index").iterdir()
    assert b"sig=right" not in file.read_bytes()
    # Signed again, it is the same shard.
    renewed, indexed = find_index(uri.replace("right", "renewed"), str(tmp_path / "index"))
    assert indexed
    [sample] = read_samples(SourceIndex([renewed]), [0], frozenset({"cls"}))
    assert sample.name == f"sample 'a' of shard {web.address}/signed/x.tar"
    assert any("renewed" in path for path, _ in web.handler.requests)


def test_a_wrong_signature_is_an_error_that_does_not_show_it(web: Web, tmp_path: Path) -> None:
    with pytest.raises(ShardError) as caught:
        read(f"{web.address}/signed/x.tar?sig=wrong", tmp_path)
    assert str(caught.value).startswith(
        f"shard {web.address}/signed/x.tar: storage rejected the request (403, "
    )
    assert "wrong" not in str(caught.value)


def test_what_is_no_url_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"shard http://host:port/x.tar: is not a URL \(.*\); correct it"):
        read("http://host:port/x.tar", tmp_path)


def test_proxies_of_the_environment_are_used(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Proxy(OddServer):
        requests: list[tuple[str, str]] = []  # noqa: RUF012 # one class per test

        def do_GET(self) -> None:
            assert self.path.startswith("http://no.such.host/ranges/x.tar")
            self.requests.append((self.path, self.headers.get("Range", "")))
            self._ranges()

    server = QuietServer(("127.0.0.1", 0), Proxy)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert read("http://no.such.host/ranges/x.tar", tmp_path) == SAMPLES
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert read(f"{web.address}/ranges/y.tar", tmp_path) == SAMPLES
    server.shutdown()
    server.server_close()
    assert not [path for path, _ in Proxy.requests if "y.tar" in path]


def test_options_of_fsspec_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"client_kwargs": {"headers": {"Authorization": "Bearer x"}}}
    monkeypatch.setitem(fsspec.config.conf, "https", options)
    session = sync(web_file.web_filesystem().loop, web_file.web_filesystem().set_session)
    assert session.headers["Authorization"] == "Bearer x"
    assert session.trust_env
