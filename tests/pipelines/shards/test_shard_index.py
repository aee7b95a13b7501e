"""Shard index: every field of every sample of any tar, or an error of one line; never a silently shorter index."""

import bz2
import gzip
import hashlib
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from tar_files import index_of, indexed_samples, tar_bytes, write_tar

from pipelines.errors import ShardError
from pipelines.shards.shard_index import ShardSummary, find_index, index_shard

THREE = [(f"{key}.{field}", f"{key} {field}".encode() * 200) for key in "abc" for field in ("jpg", "cls")]
COMPLETE = {key: {field: dict(THREE)[f"{key}.{field}"] for field in ("jpg", "cls")} for key in "abc"}


def index_beside(shard: str | Path) -> ShardSummary:
    """Index a shard into the folder "index" beside it."""
    return index_shard(str(shard), str(Path(shard).parent / "index"))


def problems(summary: ShardSummary) -> dict[str, str]:
    """Return the problem of each key in an index, "" for none."""
    return {row["key"]: row["problem"] for row in pq.read_table(summary.index).to_pylist()}


def error_of(shard: str | Path) -> str:
    """Return the message of the error that indexing raises; it must leave no index file."""
    with pytest.raises(ShardError) as caught:
        index_beside(shard)
    assert list((Path(shard).parent / "index").glob("*")) == []
    return str(caught.value)


def samples_or_error(shard: str | Path) -> dict[str, dict[str, bytes]] | ShardError:
    """Return the samples that the index finds, or the error that indexing raises."""
    try:
        return indexed_samples(index_beside(shard))
    except ShardError as error:
        return error


def test_shards_of_webdatasets_writer_are_indexed(tmp_path: Path) -> None:
    pattern = str(tmp_path / "train-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"sample{number:03d}", "png": bytes([number]) * 700, "cls": number})
    index = index_of(*(pattern % shard for shard in range(3)))
    assert [shard.samples for shard in index.shards] == [4, 4, 2]
    assert index.samples == 10
    assert [index.locate(number) for number in (0, 3, 4, 9)] == [(0, 0), (0, 3), (1, 0), (2, 1)]
    assert indexed_samples(index.shards[2]) == {
        f"sample{number:03d}": {"png": bytes([number]) * 700, "cls": str(number).encode()}
        for number in (8, 9)
    }


def test_shards_with_the_layout_of_img2dataset_are_indexed(tmp_path: Path) -> None:
    keys = [f"{number:09d}" for number in range(3)]
    members = [
        (f"{key}.{field}", f"{key}{field}".encode()) for key in keys for field in ("jpg", "json", "txt")
    ]
    summary = index_beside(write_tar(tmp_path / "00000.tar", members))
    assert indexed_samples(summary) == {
        key: {field: f"{key}{field}".encode() for field in ("jpg", "json", "txt")} for key in keys
    }


@given(order=st.permutations(THREE))
def test_members_may_have_any_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[tuple[str, bytes]]
) -> None:
    summary = index_beside(write_tar(tmp_path_factory.mktemp("shards") / "x.tar", order))
    assert summary.samples == 3
    assert indexed_samples(summary) == COMPLETE


def test_unusual_names_are_split_into_key_and_field(tmp_path: Path) -> None:
    members = [
        ("./cats/a.JPEG", b"1"),
        ("v1.2/a.jpeg", b"2"),
        ("a.seg.png", b"3"),
        ("plain", b"no field"),
        ("._a.jpg", b"no key"),
        ("b.flac", b""),
    ]
    assert indexed_samples(index_beside(write_tar(tmp_path / "x.tar", members))) == {
        "./cats/a": {"jpeg": b"1"},
        "v1.2/a": {"jpeg": b"2"},
        "a": {"seg.png": b"3"},
        "b": {"flac": b""},
    }


STRAYS = [
    ("README.md", b"what this is"),
    ("docs/LICENSE.txt", b"terms"),
    ("__info__.json", b"{}"),
    ("a/Thumbs.db", b"thumbnails"),
    (".DS_Store", b""),
]


def test_what_is_no_sample_is_counted_apart(tmp_path: Path) -> None:
    summary = index_beside(write_tar(tmp_path / "x.tar", [*STRAYS[:2], *THREE, *STRAYS[2:]]))
    assert indexed_samples(summary) == COMPLETE
    assert (summary.samples, summary.strays) == (3, 5)
    assert summary.fields == {"jpg": 3, "cls": 3}


@pytest.mark.parametrize(
    "members",
    [
        [("a.cls", b"0"), ("b.jpg", b"1"), ("b.cls", b"1")],  # a sample that lacks its picture
        [("a.heic", b"0"), ("b.txt", b"1")],  # no known medium: nobody can tell what is a sample
        [("a.left.png", b"0"), ("b.jpg", b"1")],  # a picture under a name of its own
    ],
)
def test_a_sample_without_its_medium_stays_a_sample(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    summary = index_beside(write_tar(tmp_path / "x.tar", members))
    assert (summary.samples, summary.strays) == (2, 0)


def test_fields_are_counted_over_all_shards(tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / f"{number}.tar", [*THREE, *STRAYS[:1]]) for number in range(2)]
    many = write_tar(tmp_path / "many.tar", [(f"photo.{number}.jpg", b"") for number in range(100)])
    index = index_of(*shards, many)
    assert index.fields["jpg"] == index.fields["cls"] == 6
    assert len(index.fields) == 2 + 32
    assert index.strays == 2


@pytest.mark.parametrize("archive_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_non_ascii_names_are_kept(tmp_path: Path, archive_format: int) -> None:
    long, foreign = "folder/" * 30 + "k" * 120, "喵/über"
    members = [(f"{long}.jpg", b"long"), (f"{foreign}.jpg", b"foreign"), ("c.jpg", b"short")]
    summary = index_beside(write_tar(tmp_path / "x.tar", members, archive_format))
    assert indexed_samples(summary) == {
        long: {"jpg": b"long"},
        foreign: {"jpg": b"foreign"},
        "c": {"jpg": b"short"},
    }


def test_names_that_are_not_utf8_stay_distinct(tmp_path: Path) -> None:
    names = [b"caf\xe9.cls".decode(errors="surrogateescape"), b"caf\xe8.cls".decode(errors="surrogateescape")]
    summary = index_beside(write_tar(tmp_path / "x.tar", [(name, b"1") for name in names]))
    assert list(indexed_samples(summary)) == ["caf\\xe9", "caf\\xe8"]


def test_folder_is_no_sample_and_link_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.cls").write_text("1")
    os.symlink("a.cls", tmp_path / "in" / "b.cls")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "in", "in.d")
    summary = index_beside(tmp_path / "x.tar")
    assert problems(summary) == {"in.d/a": "", "in.d/b": "its field 'cls' is a link, expected a file"}


def special(kind: bytes) -> bytes:
    """Return a tar with a good sample and one whose only member is of a special kind."""
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, of in (("a.cls", tarfile.REGTYPE), ("b.cls", kind)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = of, "/etc/passwd"
            archive.addfile(member)
    return target.getvalue()


BAD_SAMPLES = [
    (special(tarfile.LNKTYPE), "its field 'cls' is a link, expected a file"),
    (special(tarfile.CHRTYPE), "its field 'cls' is a device or a sparse file, expected a plain file"),
    (special(tarfile.FIFOTYPE), "its field 'cls' is a device or a sparse file, expected a plain file"),
    (
        tar_bytes([("a.cls", b"1"), ("b.cls", b"2"), ("b.CLS", b"3")]),
        "has the field 'cls' twice; keys must be unique within a shard",
    ),
]


@pytest.mark.parametrize(("content", "problem"), BAD_SAMPLES)
def test_bad_sample_is_indexed_with_its_problem(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    assert problems(index_beside(tmp_path / "x.tar")) == {"a": "", "b": problem}


@pytest.mark.parametrize("name", ["../b.cls", "/etc/b.cls", "x/../../b.cls"])
def test_key_that_leaves_its_folder_is_indexed_with_its_problem(tmp_path: Path, name: str) -> None:
    shard = write_tar(tmp_path / "x.tar", [("a.cls", b"1"), (name, b"2")])
    found = problems(index_beside(shard))
    assert found == {
        "a": "",
        name.removesuffix(".cls"): "its key is an absolute path or leads out of its folder",
    }


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    # More zeros after the end mark than one read of 4 MiB returns: the digest must cover what tarfile does not read.
    shard.write_bytes(tar_bytes(THREE) + bytes(9 << 20))
    summary = index_beside(shard)
    assert summary.bytes == shard.stat().st_size
    assert summary.sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()


def test_indexed_shard_is_not_read_again(tmp_path: Path) -> None:
    shard = Path(write_tar(tmp_path / "x.tar", THREE))
    summary = index_beside(shard)
    times = shard.stat()
    shard.write_bytes(b"?" * times.st_size)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert index_beside(shard) == summary
    assert find_index(str(shard), str(tmp_path / "index")) == (summary, True)


def test_changed_shard_is_indexed_again(tmp_path: Path) -> None:
    shard = Path(write_tar(tmp_path / "x.tar", THREE))
    before = index_beside(shard)
    write_tar(shard, [(f"new-{name}", content) for name, content in THREE])
    os.utime(shard, ns=(0, before.modified + 1))
    assert shard.stat().st_size == before.bytes
    assert find_index(str(shard), str(tmp_path / "index"))[1] is False
    assert list(indexed_samples(index_beside(shard))) == ["new-a", "new-b", "new-c"]


def test_shard_can_be_indexed_concurrently(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar", [(f"{number}.cls", b"1") for number in range(500)])
    with ThreadPoolExecutor(8) as pool:
        summaries = set(pool.map(index_beside, [shard] * 32))
    assert [summary.samples for summary in summaries] == [500]
    assert len(list((tmp_path / "index").iterdir())) == 1


@given(data=st.data())
def test_shard_truncated_anywhere_is_an_error_or_complete(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = tar_bytes(THREE)
    shard = tmp_path_factory.mktemp("shards") / "x.tar"
    shard.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), label="cut")])
    found = samples_or_error(shard)
    assert found == COMPLETE or str(found).startswith(f"shard {shard}: is ")


@pytest.mark.parametrize("block", range(24))
def test_shard_truncated_between_blocks_is_an_error_or_complete(tmp_path: Path, block: int) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(tar_bytes(THREE)[: 512 * block])
    end = 512 * len(THREE) * 3  # Each member is a header and two blocks of content.
    if 512 * block < end + 1024:
        assert error_of(shard).endswith("write it again or leave it out")
    else:
        assert index_beside(shard).samples == 3


@given(member=st.integers(1, 5), byte=st.integers(0, 511), value=st.integers(0, 255))
def test_damaged_header_never_shortens_the_index(
    tmp_path_factory: pytest.TempPathFactory, member: int, byte: int, value: int
) -> None:
    damaged = bytearray(tar_bytes(THREE))
    damaged[member * 3 * 512 + byte] = value
    shard = tmp_path_factory.mktemp("shards") / "x.tar"
    shard.write_bytes(damaged)
    found = samples_or_error(shard)
    assert found == COMPLETE or isinstance(found, ShardError)


def test_concatenated_tars_are_an_error(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(tar_bytes(THREE) + tar_bytes([("d.cls", b"1")]))
    assert error_of(shard) == (
        f"shard {shard}: cannot be read beyond byte 9216 of 20480: a damaged header, or two tars joined; "
        "write it again or leave it out"
    )


def test_missing_shard_is_an_error(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    assert error_of(shard) == f"shard {shard}: no such file; check the source's shards"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty (0 bytes); write it again or leave it out"),
        (tar_bytes([]), "holds no samples (files named KEY.FIELD); leave it out"),
        (tar_bytes([("a", b"1")]), "holds no samples (files named KEY.FIELD); leave it out"),
        (
            gzip.compress(tar_bytes(THREE)),
            "is compressed (gzip); byte ranges need a plain tar: decompress it first",
        ),
        (
            bz2.compress(tar_bytes(THREE)),
            "is compressed (bzip2); byte ranges need a plain tar: decompress it first",
        ),
        (
            b"<html>404</html>",
            "is truncated or not a tar (truncated header) at 16 bytes; write it again or leave it out",
        ),
        (
            tar_bytes(THREE)[: 9216 + 512],
            "is truncated: its 9728 bytes do not end in the tar end mark; write it again or leave it out",
        ),
        (
            tar_bytes(THREE)[:9000],
            "is truncated or not a tar (unexpected end of data) at 9000 bytes; write it again or leave it out",
        ),
    ],
)
def test_bad_shard_is_an_error_of_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(content)
    assert error_of(shard) == f"shard {shard}: {problem}"
