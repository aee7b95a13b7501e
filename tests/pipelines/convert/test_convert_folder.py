"""Tests of converting folder trees: classes, splits, lists of held-out files, ModelNet."""

from pathlib import Path

import pytest
from converted_shards import read_shards, shades, write_tree, written
from mesh_files import SQUARE, off

from perceiver_dist.errors import UserError
from pipelines.convert import convert_folder, convert_modelnet

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_fraction_of_every_class_is_held_out(tmp_path: Path) -> None:
    paths = [f"{label}/{deep}{i}.png" for label in ("dog", "cat") for deep in ("", "more/") for i in range(5)]
    tree = write_tree(tmp_path / "tree", *paths, "dog/.hidden.png", "_background_/noise.png")
    (tree / "cat" / "notes.txt").touch()
    source = written(convert_folder(tree, str(tmp_path / "pets"), eval_fraction=0.2))
    assert source.class_names == ["cat", "dog"]
    train, held_out = shades(source.train_shards), shades(source.eval_shards)
    assert train | held_out == {number: str(int(number < 10)) for number in range(20)}
    assert not train.keys() & held_out.keys()
    assert sorted(held_out.values()) == ["0", "0", "1", "1"]
    assert convert_folder(tree, str(tmp_path / "all"), eval_fraction=0).source.eval_shards == ""


def test_folders_of_splits_become_splits(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "train/a/x.png", "train/b/c/x.png", "val/b/x.png", "val/top.png")
    source = written(convert_folder(tree, str(tmp_path / "out")))
    assert (shades(source.train_shards), shades(source.eval_shards)) == ({0: "0", 1: "1"}, {2: "1"})


def test_a_list_names_the_held_out_files(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "a/x.png", "a/y.png", "b/x.png", "b/y.png")
    (tmp_path / "test.txt").write_text("a/y.png 1\nb/x.png\n\n")
    source = written(convert_folder(tree, str(tmp_path / "out"), eval_list=tmp_path / "test.txt"))
    assert (shades(source.train_shards), shades(source.eval_shards)) == ({0: "0", 3: "1"}, {1: "0", 2: "1"})
    (tmp_path / "test.txt").write_text("a/z.png\n")
    with pytest.raises(UserError, match=r"test.txt: .*z.png: no such file"):
        convert_folder(tree, str(tmp_path / "out"), eval_list=tmp_path / "test.txt")


@pytest.mark.parametrize(
    ("paths", "fraction", "error"),
    [
        (["top.png"], 0.1, "lists 0 samples, none of them for training"),
        (["a/x.png", "a/y.png"], 0.1, "has 1 label"),
        (["a/x.png", "b/x.png"], 1.0, "--eval_fraction is 1.0, must be from 0 to below 1"),
    ],
)
def test_an_invalid_tree_is_rejected(tmp_path: Path, paths: list[str], fraction: float, error: str) -> None:
    with pytest.raises(UserError, match=error):
        convert_folder(write_tree(tmp_path / "tree", *paths), str(tmp_path / "out"), fraction)
    with pytest.raises(UserError, match=r"folder .*nowhere: no such folder"):
        convert_folder(tmp_path / "nowhere", str(tmp_path / "out"))


def write_modelnet(folder: Path, *paths: str) -> Path:
    """Write a tree of meshes like ModelNet, each with its own path as a comment."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(off(*SQUARE) + f"# {path}".encode())
    return folder


def test_modelnet_is_converted(tmp_path: Path) -> None:
    train = [f"{label}/train/{label}_{i}.off" for label in ("night_stand", "chair") for i in range(3)]
    rest = ["chair/test/chair_7.off", "night_stand/train/.chair_1.off", "chair/train/notes.txt"]
    tree = write_modelnet(tmp_path / "tree", *train, *rest)
    source = written(convert_modelnet(tree, str(tmp_path / "m40"), 4))
    classes = ["chair", "night_stand"]
    assert (source.name, source.modalities, source.class_names) == ("m40", ["points"], classes)
    assert source.train_shards == str(tmp_path / "m40" / "train-{000000..000001}.tar")
    for pattern, expected in ((source.train_shards, train), (source.eval_shards, rest[:1])):
        read = {each["off"].decode().rpartition("# ")[2]: int(each["cls"]) for each in read_shards(pattern)}
        assert read == {path: classes.index(path.partition("/")[0]) for path in expected}


@pytest.mark.parametrize(
    ("paths", "error"),
    [
        ([], r"tree: CLASS/train/\*\.off and CLASS/test/\*\.off: lists 0 samples, none of them for training"),
        (["chair/test/a.off"], "lists 1 samples, none of them for training"),
        (["chair/train/a.off"], "has 1 label"),
    ],
)
def test_a_folder_that_is_not_modelnet_is_rejected(tmp_path: Path, paths: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        convert_modelnet(write_modelnet(tmp_path / "tree", *paths), str(tmp_path / "out"))
