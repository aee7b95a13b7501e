"""The job that converts: what it prints, and how it reports mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from converted_shards import read_shards, write_tree

from pipelines.shards.source import SourceConfig

PROJECT = Path(__file__).parents[3]


def prepare_data(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROJECT / "jobs" / "prepare_data.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_prints_the_source_as_a_config_takes_it(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.png", "b.png")
    (tmp_path / "files.csv").write_text("path,label,split\na.png,x,train\nb.png,y,test\n")
    done = prepare_data("manifest", "--table", str(tmp_path / "files.csv"), "--out", str(tmp_path / "pets"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (source,) = yaml.safe_load(done.stdout)["sources"]
    assert SourceConfig(**source).class_names == ["x", "y"]
    assert read_shards(source["eval_shards"])[0]["cls"] == b"1"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["manifest", "--table", "nowhere.csv", "--out", "x"], "nowhere.csv: no such file"),
        (["manifest", "--table", "a.csv", "--out", "x", "--seed", "abc"], "seed"),
        (["imagenet"], "imagenet"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], error: str) -> None:
    done = prepare_data(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert error in done.stderr
