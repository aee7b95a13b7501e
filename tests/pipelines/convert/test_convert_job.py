"""Tests of jobs/prepare_data.py: its output, and how it reports errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from converted_shards import read_shards, write_tree

from jobs import prepare_data
from perceiver_dist.errors import UserError
from pipelines.shards.source import SourceConfig

PROJECT = Path(__file__).parents[3]


@pytest.mark.usefixtures("ray_cluster")
def test_the_source_is_printed_as_yaml_and_the_counts_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, "a.png", "b.png")
    (tmp_path / "files.csv").write_text("path,label,split\na.png,x,train\nb.png,y,test\n")
    options = ["manifest", "--table", str(tmp_path / "files.csv"), "--out", str(tmp_path / "pets")]
    # As a process, since Ray must not print anything either.
    command = [sys.executable, str(PROJECT / "jobs" / "prepare_data.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = "1 training and 1 held-out samples, 2 classes, 2 shards, of which {} existed already\n"
    assert done.stderr == counts.format(0)
    (source,) = yaml.safe_load(done.stdout)["sources"]
    assert SourceConfig(**source).class_names == ["x", "y"]
    assert read_shards(source["eval_shards"])[0]["cls"] == b"1"
    assert prepare_data.main(options) == 0
    assert capsys.readouterr() == (done.stdout, counts.format(2))


@pytest.mark.usefixtures("ray_cluster")
def test_a_table_without_a_split_column_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, "a.png", "b.png")
    (tmp_path / "files.csv").write_text("path,label\na.png,x\nb.png,y\n")
    prepare_data.main(["manifest", "--table", str(tmp_path / "files.csv"), "--out", str(tmp_path / "pets")])
    assert capsys.readouterr().err.splitlines() == [
        f"table {tmp_path / 'files.csv'}: no column 'split': all 2 samples for training, none held out",
        "2 training and 0 held-out samples, 2 classes, 1 shard, of which 0 existed already",
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["manifest", "--table", "nowhere.csv", "--out", "x"], "nowhere.csv: no such file"),
        (["manifest", "--table", "a.csv", "--out", "x", "--seed", "abc"], "seed"),
        (["imagenet"], "imagenet"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error) as raised:
        prepare_data.main(arguments)
    assert "\n" not in str(raised.value)
