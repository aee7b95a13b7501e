"""Files by path or URI: shard patterns, atomic writes, and the same reads from memory and over HTTP."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest
from tar_files import tar_bytes

from perceiver_dist.errors import UserError
from pipelines.shards.sample_reader import read_samples
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.storage.files import (
    absolute_uri,
    copy_file,
    delete,
    join,
    list_folder,
    open_storage,
    read_text,
    reason_of,
    rename,
    write_chunks,
    write_text,
)
from pipelines.storage.shard_list import expand_shards
from pipelines.storage.write_check import check_writable

SHARD = tar_bytes([(f"{key}.cls", key.encode() * 3000) for key in "abc"])


@pytest.fixture
def memory() -> str:
    """Return the URI of an empty folder in memory."""
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket"


class RangeServer(BaseHTTPRequestHandler):
    """Web server that serves SHARD under any path, whole or in ranges, as object stores do."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(SHARD)))
        self.end_headers()

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(SHARD) - 1)
        content = SHARD[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{len(SHARD)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    """Start the server and return its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), RangeServer)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def read_back(uri: str, index: str) -> list[bytes]:
    """Index a shard and read its samples 2 and 0."""
    shards = SourceIndex([index_shard(uri, index)])
    return [sample.fields["cls"] for sample in read_samples(shards, [2, 0], frozenset({"cls"}))]


def test_shards_are_read_over_http(web: str, tmp_path: Path) -> None:
    assert read_back(f"{web}/train-000000.tar", str(tmp_path)) == [b"c" * 3000, b"a" * 3000]


def test_shards_and_indexes_can_be_in_memory(memory: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(SHARD)
    copy_file(str(tmp_path / "x.tar"), f"{memory}/data/train-0.tar")
    (uri,) = expand_shards(f"{memory}/data/*.tar", "speech")
    assert read_back(uri, f"{memory}/index") == [b"c" * 3000, b"a" * 3000]


def test_file_uri_is_a_local_path(tmp_path: Path) -> None:
    write_text((tmp_path / "new" / "a.txt").as_uri(), "é")
    assert read_text(str(tmp_path / "new" / "a.txt")) == "é"


def test_paths_become_absolute_and_uris_stay_unchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/there")
    assert absolute_uri("data/x.tar") == f"{tmp_path}/data/x.tar"
    assert absolute_uri("~/x.tar") == "/there/x.tar"
    assert absolute_uri("s3://bucket/x.tar") == "s3://bucket/x.tar"
    assert open_storage("data/x.tar")[1] == f"{tmp_path}/data/x.tar"


def test_parts_are_joined_with_one_slash() -> None:
    assert join("s3://bucket/data/", "index", "a") == "s3://bucket/data/index/a"


def test_text_is_replaced_and_no_temporary_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(str(path), "a longer text")
    write_text(str(path), "short")
    assert read_text(str(path)) == "short"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_text_is_none(tmp_path: Path) -> None:
    assert read_text(str(tmp_path / "nothing")) is None
    assert read_text(str(tmp_path)) is None


def test_check_of_a_writable_folder_creates_it_and_leaves_it_empty(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "runs" / "a"), "storage.path")
    assert list((tmp_path / "runs" / "a").iterdir()) == []


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        check_writable(f"{tmp_path}/file", "storage.path")
    message = str(caught.value)
    assert message.startswith(f"storage.path is '{tmp_path}/file', which cannot be written (")
    assert message.endswith("); choose another folder")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("http://host/runs", "storage of this kind is read only"),
        (
            "nothing://x/runs",
            "'nothing://x/runs/.* cannot be opened \\(Protocol not known: nothing\\); use .*",
        ),
    ],
)
def test_storage_that_cannot_be_written_is_an_error(folder: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        check_writable(folder, "storage.path")
    assert re.fullmatch(
        rf"storage.path is '{folder}', which cannot be written \({reason}\); check the address, the endpoint and the "
        "access rights, or choose another folder",
        str(caught.value),
    )


def test_file_uris_may_have_any_character(tmp_path: Path) -> None:
    for name in ("a b", "50%", "#1", "what?", "é"):
        write_text((tmp_path / name).as_uri(), name)
        assert (tmp_path / name).read_text() == name
        assert read_text(f"file://{tmp_path}/{name}" if "%" not in name else str(tmp_path / name)) == name


@pytest.mark.parametrize("store", ["local", "memory"])
def test_files_are_written_in_chunks_listed_renamed_and_deleted(
    tmp_path: Path, memory: str, store: str
) -> None:
    folder = f"{tmp_path}/a" if store == "local" else f"{memory}/a"
    assert list_folder(folder) == {}
    write_chunks(join(folder, "b", "c"), [b"one", memoryview(b"two")])
    write_chunks(join(folder, "d"), [])
    assert read_text(join(folder, "b", "c")) == "onetwo"
    assert list_folder(folder) == {"b": None, "d": 0}
    rename(join(folder, "b", "c"), "e")
    assert list_folder(join(folder, "b")) == {"e": 6}
    for name in ("b", "d", "nothing"):
        delete(join(folder, name))
    assert list_folder(folder) == {}


def test_partially_written_file_is_deleted(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"one"
        raise OSError(28, "in the words of the store")

    with pytest.raises(OSError) as caught:  # noqa: PT011 # the reason is checked below
        write_chunks(str(tmp_path / "a"), chunks())
    assert reason_of(caught.value) == "No space left on device"
    assert reason_of(TimeoutError()) == "TimeoutError"
    assert reason_of(OSError("AccessDenied:\nmore")) == "AccessDenied:"
    assert list(tmp_path.iterdir()) == []


def test_copy_is_complete_or_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    copy_file(str(tmp_path / "a"), str(tmp_path / "new" / "b"))
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"content"]
    with pytest.raises(FileNotFoundError):
        copy_file(str(tmp_path / "missing"), str(tmp_path / "new" / "c"))
    assert [path.name for path in Path(tmp_path / "new").iterdir()] == ["b"]
