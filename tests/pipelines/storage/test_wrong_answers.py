"""Stores that send something else than the file: nothing, half of it, or another object of the same length."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import torch
from faulty_proxy import FaultyProxy, Kind
from moto.server import ThreadedMotoServer
from tar_files import tar_bytes

from perceiver_dist.checkpoint.format import PARTS, Span, StoredCheckpoint, file_header, write_rank_file
from perceiver_dist.checkpoint.manifest import Manifest, TrainingProgress, write_manifest
from pipelines.errors import ShardError
from pipelines.shards.sample_reader import read_samples
from pipelines.shards.shard_index import SourceIndex, find_index, index_shard
from pipelines.shards.source import DataConfig
from pipelines.storage import files

SHARD = tar_bytes([(f"{key}.cls", key.encode() * 3000) for key in "abc"])


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    """Start an S3 server behind a proxy, with a bucket `shards`; pyarrow finds it by the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    names = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch, FaultyProxy(address) as started:
        for name, value in {**names, "AWS_ENDPOINT_URL": started.address}.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="shards")
        client.put_object(Bucket="shards", Key="x.tar", Body=SHARD)
        yield started
    server.stop()


@pytest.mark.parametrize("kind", ["empty", "half", "other", "longer", "503"])
def test_a_field_that_is_not_the_indexed_one_is_read_again(
    proxy: FaultyProxy, tmp_path: Path, kind: Kind
) -> None:
    index = SourceIndex([index_shard("s3://shards/x.tar", str(tmp_path))])
    data = DataConfig(storage_seconds=60)
    with proxy.faulty(kind, "GET .*x.tar") as fault:
        # The first answers are wrong, and the fault is over when it has been met twice.
        fault.until = 2
        [sample] = read_samples(index, [1], frozenset({"cls"}), data)
    assert sample.fields["cls"] == b"b" * 3000
    assert fault.hits == 2


def test_a_shard_that_was_replaced_is_an_error_that_says_so(proxy: FaultyProxy, tmp_path: Path) -> None:
    index = SourceIndex([index_shard("s3://shards/x.tar", str(tmp_path))])
    with (
        proxy.faulty("other", "GET .*x.tar"),
        pytest.raises(
            ShardError, match=r"storage has failed for 10 s \(what came at byte 512 is not what was indexed"
        ),
    ):
        read_samples(index, [0], frozenset({"cls"}), DataConfig(storage_seconds=10))


def test_a_field_that_has_changed_on_a_disk_is_a_bad_sample(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(SHARD)
    index = SourceIndex([index_shard(str(shard), str(tmp_path / "index"))])
    shard.write_bytes(SHARD.replace(b"bbb", b"bab", 1))
    first, second = read_samples(index, [0, 1], frozenset({"cls"}))
    assert first.problem == ""
    assert second.problem == "field 'cls' has changed since the shard was indexed"


def test_a_damaged_index_on_a_disk_is_made_again(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(SHARD)
    made = index_shard(str(shard), str(tmp_path / "index"))
    Path(made.index).write_bytes(Path(made.index).read_bytes()[:500])
    assert not find_index(str(shard), str(tmp_path / "index"))[1]
    assert index_shard(str(shard), str(tmp_path / "index")) == made


@pytest.mark.parametrize("kind", ["empty", "other", "half"])
def test_an_index_in_a_bucket_is_read_again_when_something_else_comes(proxy: FaultyProxy, kind: Kind) -> None:
    made = index_shard("s3://shards/x.tar", "s3://shards/index")
    with proxy.faulty(kind, "GET .*parquet") as fault:
        fault.until = 1
        assert find_index("s3://shards/x.tar", "s3://shards/index") == (made, True)
    assert fault.hits == 1


@pytest.mark.parametrize("kind", ["empty", "half", "500", "429", "dropped"])
def test_a_small_file_is_whole_or_asked_for_again(proxy: FaultyProxy, kind: Kind) -> None:
    text = "steps: 7\n" * 1000
    files.write_text("s3://shards/run/config.yaml", text)
    with proxy.faulty(kind, "GET .*config") as fault:
        fault.until = 5
        assert files.read_text("s3://shards/run/config.yaml") == text


@pytest.mark.parametrize("kind", ["503", "dropped", "half"])
def test_a_small_file_is_written_in_the_end(proxy: FaultyProxy, kind: Kind) -> None:
    with proxy.faulty(kind) as fault:
        fault.until = 6
        files.write_text("s3://shards/run/result.json", "{}")
    assert files.read_text("s3://shards/run/result.json") == "{}"


def test_without_patience_a_failure_is_raised_at_once(proxy: FaultyProxy) -> None:
    with proxy.faulty("503"), pytest.raises(OSError, match="503"):
        files.write_text("s3://shards/run/lease.json", "{}", retry_seconds=0)


def test_nothing_is_not_taken_for_the_content_of_a_checkpoint(proxy: FaultyProxy) -> None:
    values = torch.arange(1000.0)
    uri = "s3://shards/run/step-00000001/rank.safetensors"
    spans = [(part, "w", Span(0, 1000)) for part in PARTS]
    stored = write_rank_file(uri, file_header(spans, {"w": [1000]}), values.repeat(len(PARTS)))
    write_manifest(uri.rpartition("/")[0], Manifest(TrainingProgress(1, 1, 1, 0, 1), (stored,)))
    with proxy.faulty("empty", "GET .*rank") as fault:
        fault.until = 1
        checkpoint = StoredCheckpoint(uri.rpartition("/")[0])
        fault.until = 2
        assert torch.equal(checkpoint.whole("weight")["w"], values)
    assert fault.hits == 2


def test_arrow_is_the_one_to_return_garbage(proxy: FaultyProxy) -> None:
    """If this fails, pyarrow has learned to compare what came with what was asked for."""
    files.write_text("s3://shards/run/x", "text" * 1000)
    filesystem, path = files.open_storage("s3://shards/run/x")
    with proxy.faulty("empty", "GET .*run/x"), filesystem.open_input_file(path) as file:
        assert len(file.read_at(4000, 0)) == 4000
