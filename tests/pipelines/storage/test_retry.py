"""Storage that fails or stalls: a real web server that misbehaves, and an S3 server that is not there at first."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
from tar_files import tar_bytes

from pipelines.errors import ShardError
from pipelines.shards.sample_reader import read_samples
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.shards.source import DataConfig

SHARD = tar_bytes([(f"{key}.cls", key.encode() * 3000) for key in "abc"])

Misbehave = Callable[["Shaky", int], bool]


class Shaky(BaseHTTPRequestHandler):
    """Serves SHARD, whole or in ranges, unless `misbehave` has answered the nth request of a kind."""

    misbehave: Misbehave
    seen: Counter[str]

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(SHARD) - 1)
        self._answer(SHARD[first : last + 1], first if wanted else None)

    def _answer(self, content: bytes, first: int | None = None) -> None:
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
        """Keep quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[[Misbehave], str]]:
    """Start a server that misbehaves so, and return the address of its shard."""
    servers = []

    def start(misbehave: Misbehave) -> str:
        handler = type("Handler", (Shaky,), {"misbehave": staticmethod(misbehave), "seen": Counter()})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/x.tar"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def failing(status: int, first: int) -> Misbehave:
    """Answer the first requests of each kind with this status."""

    def misbehave(request: Shaky, number: int) -> bool:
        if number <= first:
            request.send_error(status)
        return number <= first

    return misbehave


def stalling(until: Event, first: int) -> Misbehave:
    """Leave the first requests that ask for bytes without an answer."""

    def misbehave(request: Shaky, number: int) -> bool:
        stalls = request.command == "GET" and number <= first
        if stalls:
            until.wait()
        return stalls

    return misbehave


def breaking(first: int) -> Misbehave:
    """Break off in the middle of the first answers that hold bytes."""

    def misbehave(request: Shaky, number: int) -> bool:
        if breaks := request.command == "GET" and number <= first:
            request.send_response(206)
            request.send_header("Content-Length", str(len(SHARD)))
            request.end_headers()
            request.wfile.write(SHARD[:1000])
        return breaks

    return misbehave


def read(uri: str, index_folder, seconds: float) -> list[bytes]:
    index = SourceIndex([index_shard(uri, str(index_folder), seconds)])
    samples = read_samples(index, [2, 0], frozenset({"cls"}), DataConfig(storage_seconds=seconds))
    return [sample.fields["cls"] for sample in samples]


@pytest.mark.parametrize("misbehave", [failing(503, 3), failing(429, 2), breaking(2)])
def test_storage_that_fails_at_first_is_asked_again(serve, tmp_path, misbehave):
    assert read(serve(misbehave), tmp_path, seconds=60) == [b"c" * 3000, b"a" * 3000]


def test_a_request_without_an_answer_is_given_up_and_asked_again(serve, tmp_path):
    over = Event()
    try:
        assert read(serve(stalling(over, 2)), tmp_path, seconds=10) == [b"c" * 3000, b"a" * 3000]
    finally:
        over.set()


def test_storage_that_fails_for_ever_is_one_line_after_the_deadline(serve, tmp_path):
    uri = serve(failing(503, 10**6))
    with pytest.raises(ShardError) as caught:
        read(uri, tmp_path, seconds=1)
    assert re.fullmatch(
        rf"shard {uri}: storage has failed for 1 s \(503, .*\); check it and start the same run again, "
        r"or raise data\.storage_seconds",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "no such file; check the source's shards"), (403, "storage refuses (403, ")],
)
def test_what_is_gone_or_forbidden_is_not_asked_for_again(serve, tmp_path, status, message):
    requests = []

    def misbehave(request: Shaky, number: int) -> bool:
        requests.append(number)
        request.send_error(status)
        return True

    uri = serve(misbehave)
    with pytest.raises(ShardError) as caught:
        read(uri, tmp_path, seconds=60)
    assert str(caught.value).startswith(f"shard {uri}: {message}")
    assert len(requests) <= 3  # To look it up, HEAD and then GET.


def test_a_shard_that_has_changed_is_not_asked_for_again(serve, tmp_path):
    uri = serve(failing(503, 0))
    index = SourceIndex([index_shard(uri, str(tmp_path))])
    wrong = SourceIndex([type(index.shards[0])(**{**vars(index.shards[0]), "bytes": 7})])
    with pytest.raises(ShardError, match=r"has 20480 bytes but was indexed with 7"):
        read_samples(wrong, [0], frozenset({"cls"}), DataConfig(storage_seconds=60))


def test_a_broken_disk_is_one_line_at_once(tmp_path):
    (tmp_path / "x.tar").write_bytes(SHARD)
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"^index .*: storage refuses \(.*Not a directory"):
        index_shard(str(tmp_path / "x.tar"), str(tmp_path / "file" / "index"))
