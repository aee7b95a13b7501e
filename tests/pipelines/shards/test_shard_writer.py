"""Shards as written: the same bytes each time, complete or not there, and read by WebDataset itself."""

import tarfile

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from perceiver_dist.errors import InternalError
from pipelines.errors import ShardError
from pipelines.shards.shard_writer import write_shard, write_shards


def samples(count: int):
    return [{"__key__": f"set/{i:04d}", "png": bytes([i]) * 10, "cls": i % 3} for i in range(count)]


def test_webdataset_reads_back_what_was_written(tmp_path):
    shards = write_shards(samples(7), tmp_path / "new", "train", 3)
    read = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert [shard.name for shard in shards] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert [(each["__key__"], each["png"], int(each["cls"])) for each in read] == [
        (each["__key__"], each["png"], each["cls"]) for each in samples(7)
    ]


def test_the_same_samples_give_the_same_bytes(tmp_path):
    (first,) = write_shards(samples(5), tmp_path / "a", "train", 5)
    (second,) = write_shards(samples(5), tmp_path / "b", "train", 5)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {
            (0, 0, "", 0o644)
        }


@given(count=st.integers(0, 20), per_shard=st.integers(1, 8))
def test_every_sample_is_written_once_in_order(tmp_path_factory, count, per_shard):
    shards = write_shards(samples(count), tmp_path_factory.mktemp("shards"), "x", per_shard)
    assert len(shards) == -(-count // per_shard)
    keys = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            keys += [name.removesuffix(".cls") for name in tar.getnames() if name.endswith(".cls")]
    assert keys == [each["__key__"] for each in samples(count)]


def test_a_shard_that_cannot_be_finished_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "train-000000.tar"
    path.write_bytes(b"old")

    def breaking():
        yield from samples(3)
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        write_shard(breaking(), path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("key", ["a.b", "", None, "dir/a.b"])
def test_a_key_that_would_be_read_differently_is_refused(tmp_path, key):
    with pytest.raises(ShardError, match=r"x-000000.tar: sample 0 has the key"):
        write_shards([{"__key__": key, "cls": 1}], tmp_path, "x", 10)


def test_a_dot_in_a_keys_directory_is_fine(tmp_path):
    (shard,) = write_shards([{"__key__": "v1.2/a", "cls": 1}], tmp_path, "x", 10)
    (sample,) = webdataset.WebDataset(str(shard), shardshuffle=False)
    assert sample["__key__"] == "v1.2/a"


def test_shards_hold_at_least_one_sample(tmp_path):
    with pytest.raises(InternalError, match="samples_per_shard is 0"):
        write_shards(samples(1), tmp_path, "x", 0)
