"""Retries of storage requests, against a real web server that fails, stalls or breaks off."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from tar_files import tar_bytes

from pipelines.errors import ShardError
from pipelines.shards.sample_reader import read_samples
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.shards.source import DataConfig

SHARD = tar_bytes([(f"{key}.cls", key.encode() * 3000) for key in "abc"])

Misbehave = Callable[["UnreliableServer", int], bool]
"""Takes a request and its number among those of its kind; returns whether it has dealt with the request."""

Serve = Callable[[Misbehave], str]


class UnreliableServer(BaseHTTPRequestHandler):
    """Web server that serves SHARD, whole or in ranges, unless `misbehave` deals with the request."""

    misbehave: Misbehave
    seen: Counter[str]

    def do_HEAD(self) -> None:
        self._respond(b"")

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(SHARD) - 1)
        self._respond(SHARD[first : last + 1], first if wanted else None)

    def _respond(self, content: bytes, first: int | None = None) -> None:
        type(self).seen[self.command] += 1
        if type(self).misbehave(self, self.seen[self.command]):
            return
        self.send_response(200 if first is None else 206)
        if first is not None:
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{len(SHARD)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) or len(SHARD)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server and returns the address of its shard."""
    servers: list[ThreadingHTTPServer] = []

    def start(misbehave: Misbehave) -> str:
        handler = type(
            "Handler", (UnreliableServer,), {"misbehave": staticmethod(misbehave), "seen": Counter()}
        )
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/x.tar"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def failing(status: int, first: int) -> Misbehave:
    """Respond to the first requests of each kind with this status."""

    def misbehave(request: UnreliableServer, number: int) -> bool:
        if number <= first:
            request.send_error(status)
        return number <= first

    return misbehave


def stalling(until: Event, first: int) -> Misbehave:
    """Leave the first GET requests without a response."""

    def misbehave(request: UnreliableServer, number: int) -> bool:
        stalls = request.command == "GET" and number <= first
        if stalls:
            until.wait()
        return stalls

    return misbehave


def breaking(first: int) -> Misbehave:
    """Close the connection in the middle of the first responses to GET requests."""

    def misbehave(request: UnreliableServer, number: int) -> bool:
        if breaks := request.command == "GET" and number <= first:
            request.send_response(206)
            request.send_header("Content-Length", str(len(SHARD)))
            request.end_headers()
            request.wfile.write(SHARD[:1000])
        return breaks

    return misbehave


def read(uri: str, index_folder: Path, seconds: float) -> list[bytes]:
    """Index a shard and read its samples 2 and 0, with this deadline of storage requests."""
    index = SourceIndex([index_shard(uri, str(index_folder), seconds)])
    samples = read_samples(index, [2, 0], frozenset({"cls"}), DataConfig(storage_seconds=seconds))
    return [sample.fields["cls"] for sample in samples]


@pytest.mark.parametrize("misbehave", [failing(503, 3), failing(429, 2), breaking(2)])
def test_failed_requests_are_retried(serve: Serve, tmp_path: Path, misbehave: Misbehave) -> None:
    assert read(serve(misbehave), tmp_path, seconds=60) == [b"c" * 3000, b"a" * 3000]


def test_stalled_requests_are_abandoned_and_retried(serve: Serve, tmp_path: Path) -> None:
    over = Event()
    try:
        assert read(serve(stalling(over, 2)), tmp_path, seconds=10) == [b"c" * 3000, b"a" * 3000]
    finally:
        over.set()


def test_failure_beyond_the_deadline_is_an_error_of_one_line(serve: Serve, tmp_path: Path) -> None:
    uri = serve(failing(503, 10**6))
    with pytest.raises(ShardError) as caught:
        read(uri, tmp_path, seconds=1)
    # On a busy machine the last try may get no response in time.
    reason = r"\((503, .*|no response within 0\.2 s)\)"
    assert re.fullmatch(
        rf"shard {uri}: storage has failed for 1 s {reason}; check the storage and restart the run, "
        r"or raise data\.storage_seconds",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "no such file; check the source's shards"), (403, "storage rejected the request (403, ")],
)
def test_missing_or_forbidden_file_is_not_retried(
    serve: Serve, tmp_path: Path, status: int, message: str
) -> None:
    requests: list[int] = []

    def misbehave(request: UnreliableServer, number: int) -> bool:
        requests.append(number)
        request.send_error(status)
        return True

    uri = serve(misbehave)
    with pytest.raises(ShardError) as caught:
        read(uri, tmp_path, seconds=60)
    assert str(caught.value).startswith(f"shard {uri}: {message}")
    assert len(requests) <= 3  # The look-up sends HEAD, then GET.


def test_changed_shard_is_not_retried(serve: Serve, tmp_path: Path) -> None:
    uri = serve(failing(503, 0))
    index = SourceIndex([index_shard(uri, str(tmp_path))])
    wrong = SourceIndex([type(index.shards[0])(**{**vars(index.shards[0]), "bytes": 7})])
    with pytest.raises(ShardError, match=r"has 20480 bytes but was indexed with 7"):
        read_samples(wrong, [0], frozenset({"cls"}), DataConfig(storage_seconds=60))


def test_local_failure_is_one_line_without_retry(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(SHARD)
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"^index .*: storage rejected the request \(.*Not a directory"):
        index_shard(str(tmp_path / "x.tar"), str(tmp_path / "file" / "index"))
