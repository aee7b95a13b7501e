"""User errors in data and storage: the run ends with one line that names the cause."""

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import small_run
from rich.console import Console

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.training.driver import run_training

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    small_run.write_data(tmp_path / "data", train=40, evaluation=8)
    return tmp_path / "data"


def first_shard(data: Path) -> Path:
    return data / "squares" / "train-000000.tar"


def remove(shard: Path) -> None:
    shard.unlink()


def empty(shard: Path) -> None:
    shard.write_bytes(b"")


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:10_000])


def compress(shard: Path) -> None:
    shard.write_bytes(gzip.compress(shard.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (remove, "source 'squares': no file matches .*/squares/train-\\*.tar; write or copy the shards"),
        (empty, "shard .*/train-000000.tar: is empty"),
        (truncate, "shard .*/train-000000.tar: is truncated"),
        (compress, "shard .*/train-000000.tar: is compressed \\(gzip\\)"),
    ],
)
def test_a_bad_shard_is_named_before_training(
    data: Path, tmp_path: Path, damage: Callable[[Path], None], line: str
) -> None:
    damage(first_shard(data))
    message = failure(small_run.small_config(data, tmp_path / "runs", "bad"))
    assert re.search(line, message)
    assert not (tmp_path / "runs" / "bad").exists()


def test_a_missing_shard_is_named(data: Path, tmp_path: Path) -> None:
    config = small_run.small_config(data, tmp_path, "missing")
    source = replace(config.sources[0], train_shards=f"{data}/squares/train-{{000000..000003}}.tar")
    message = failure(replace(config, sources=[source, config.sources[1]]))
    assert re.search(r"shard .*/train-000001.tar: no such file", message)


@pytest.mark.runs
def test_too_many_bad_samples_stop_the_run_at_a_fixed_step_with_the_reasons(
    data: Path, tmp_path: Path
) -> None:
    config = small_run.small_config(data, tmp_path, "bad")
    source = replace(config.sources[0], num_classes=3)
    message = failure(replace(config, sources=[source, config.sources[1]]))
    assert re.match(
        r"source 'squares': 128 of 512 samples could not be used, more than data.max_bad_fraction 0.01 "
        r"\(10 x label 3 is out of range 0 \.\. 2; correct the sample or the source's num_classes\); fix",
        message,
    )
    assert not (tmp_path / "bad" / "result.json").exists()
    assert len((tmp_path / "bad" / "quarantine.jsonl").read_text().splitlines()) == 10


def test_storage_that_cannot_be_written_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = failure(small_run.small_config(data, tmp_path / "file" / "runs", "nowhere"))
    assert re.search(r"storage.path is '.*/file/runs', which cannot be written", message)


def failure(config: RunConfig) -> str:
    """Return the message of the `UserError` that a run ends with, which must be one line."""
    with pytest.raises(UserError) as raised:
        run_training(config, Console(file=StringIO()))
    assert "\n" not in str(raised.value)
    return str(raised.value)
