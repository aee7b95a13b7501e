"""Sample reader: the bytes that tarfile reads, in the requested order, with few requests."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tar_files import index_of, write_tar

import pipelines.shards.sample_reader
from pipelines.errors import ShardError
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.storage.shard_file import ShardFile

FIELDS = frozenset({"jpg", "cls"})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write three shards of 4 samples with fields of many sizes; the third sample of each has no cls."""
    folder = tmp_path_factory.mktemp("shards")
    members = [
        [
            (f"s{shard}/{row}.{field}", os.urandom(1000 * row + length))
            for field, length in (("jpg", 900), ("txt", 10), ("cls", 0))
            for row in range(4)
            if (row, field) != (2, "cls")
        ]
        for shard in range(3)
    ]
    return [write_tar(folder / f"{shard}.tar", members[shard]) for shard in range(3)]


def content_of(archive: tarfile.TarFile, member: str) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def read_by_tarfile(shards: list[str], number: int) -> RawSample:
    """Read a sample with the standard library, as the reference."""
    shard, row = divmod(number, 4)
    with tarfile.open(shards[shard]) as archive:
        key = f"s{shard}/{row}"
        names = [name.removeprefix(f"{key}.") for name in archive.getnames() if name.startswith(f"{key}.")]
        fields = {name: content_of(archive, f"{key}.{name}") for name in names if name in FIELDS}
    return RawSample(shards[shard], key, fields, unread=tuple(name for name in names if name not in FIELDS))


@given(numbers=st.lists(st.integers(0, 11), max_size=20))
def test_samples_are_those_of_tarfile_in_any_order(shards: list[str], numbers: list[int]) -> None:
    read = read_samples(index_of(*shards), numbers, FIELDS)
    assert read == [read_by_tarfile(shards, number) for number in numbers]


def test_only_requested_fields_are_returned(shards: list[str]) -> None:
    (sample,) = read_samples(index_of(*shards), [5], frozenset({"txt"}))
    assert list(sample.fields) == ["txt"]
    assert sample.name == f"sample 's1/1' of shard {shards[1]}"


class RecordingFile:
    """A shard that records the (length, offset) of every read."""

    def __init__(self, file: ShardFile, ranges: list[tuple[int, int]]) -> None:
        self._file, self._ranges = file, ranges

    def read_at(self, length: int, offset: int, check: Callable[[bytes], None]) -> bytes:
        self._ranges.append((length, offset))
        return self._file.read_at(length, offset, check)


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record the (length, offset) of every read from a shard."""
    opened, ranges = pipelines.shards.sample_reader._open_shard, list[tuple[int, int]]()
    monkeypatch.setattr(
        pipelines.shards.sample_reader, "_open_shard", lambda *shard: RecordingFile(opened(*shard), ranges)
    )
    return ranges


@pytest.mark.parametrize(
    ("numbers", "requests"),
    [([3, 4, 5, 6], 1), ([6, 3, 5, 4, 3], 1), ([0, 2], 2), ([7, 8], 2), ([0], 1), ([], 0)],
)
def test_neighbours_are_read_with_one_request(
    tmp_path: Path, ranges: list[tuple[int, int]], numbers: list[int], requests: int
) -> None:
    shards = [
        write_tar(
            tmp_path / f"{shard}.tar",
            [(f"{n}.{field}", b"0" * 5000) for n in range(8) for field in sorted(FIELDS)],
        )
        for shard in range(2)
    ]
    read_samples(index_of(*shards), numbers, FIELDS)
    assert len(ranges) == requests


def test_large_unwanted_fields_in_between_are_not_read(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    shard = write_tar(tmp_path / "x.tar", [("a.cls", b"1"), ("a.mp4", b"0" * 10**6), ("b.cls", b"2")])
    assert [sample.fields for sample in read_samples(index_of(shard), [0, 1], FIELDS)] == [
        {"cls": b"1"},
        {"cls": b"2"},
    ]
    assert sum(length for length, _ in ranges) == 2


def test_missing_shard_is_an_error(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", [("a.cls", b"1")])
    index = index_of(shard)
    Path(shard).unlink()
    with pytest.raises(ShardError) as caught:
        read_samples(index, [0], FIELDS)
    assert str(caught.value) == (
        f"shard {shard}: is missing but was there when it was indexed; restore it or start a new run"
    )


def test_shard_of_another_size_is_an_error(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", [("a.cls", b"1")])
    index = index_of(shard)
    with Path(shard).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ShardError) as caught:
        read_samples(index, [0], FIELDS)
    assert str(caught.value) == (
        f"shard {shard}: has 10241 bytes but was indexed with 10240; "
        "restore the shard, or start a new run to index it again"
    )


def test_shard_that_is_truncated_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", [("a.cls", b"1"), ("b.cls", b"2")])
    index = index_of(shard)
    read_samples(index, [0], FIELDS)
    os.truncate(shard, 600)
    with pytest.raises(
        ShardError, match=r"x.tar: storage rejected the request \(read 0 of 1 bytes at byte 1536\); check"
    ):
        read_samples(index, [1], FIELDS)
