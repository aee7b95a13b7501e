"""Shard writer: deterministic bytes, atomic writes, and shards that WebDataset reads."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.errors import UserError
from pipelines.errors import ShardError
from pipelines.shards.shard_writer import Sample, write_shard, write_shards


def samples(count: int) -> list[Sample]:
    """Return samples that all differ."""
    return [{"__key__": f"set/{i:04d}", "png": bytes([i]) * 10, "cls": i % 3} for i in range(count)]


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    shards = write_shards(samples(7), tmp_path / "new", "train", 3)
    read = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert [shard.name for shard in shards] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert [(each["__key__"], each["png"], int(each["cls"])) for each in read] == [
        (each["__key__"], each["png"], each["cls"]) for each in samples(7)
    ]


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    (first,) = write_shards(samples(5), tmp_path / "a", "train", 5)
    (second,) = write_shards(samples(5), tmp_path / "b", "train", 5)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {
            (0, 0, "", 0o644)
        }


@given(count=st.integers(0, 20), per_shard=st.integers(1, 8))
def test_every_sample_is_written_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, per_shard: int
) -> None:
    shards = write_shards(samples(count), tmp_path_factory.mktemp("shards"), "x", per_shard)
    assert len(shards) == -(-count // per_shard)
    keys: list[str] = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            keys += [name.removesuffix(".cls") for name in tar.getnames() if name.endswith(".cls")]
    assert keys == [each["__key__"] for each in samples(count)]


def test_failed_write_keeps_the_old_shard_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "train-000000.tar"
    path.write_bytes(b"old")

    def failing() -> Iterator[Sample]:
        yield from samples(3)
        raise OSError("the samples cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        write_shard(failing(), path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("key", ["a.b", "", None, "dir/a.b"])
def test_key_that_would_be_read_differently_is_rejected(tmp_path: Path, key: Any) -> None:
    with pytest.raises(ShardError, match=r"x-000000.tar: sample 0 has the key"):
        write_shards([{"__key__": key, "cls": 1}], tmp_path, "x", 10)


def test_key_may_have_a_dot_in_its_folder(tmp_path: Path) -> None:
    (shard,) = write_shards([{"__key__": "v1.2/a", "cls": 1}], tmp_path, "x", 10)
    (sample,) = webdataset.WebDataset(str(shard), shardshuffle=False)
    assert sample["__key__"] == "v1.2/a"


def test_shards_of_no_samples_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="samples_per_shard is 0"):
        write_shards(samples(1), tmp_path, "x", 0)
