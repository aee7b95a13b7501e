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


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("Train", "Valid"), ("training", "validation"), ("TRAIN", "dev"), ("trn", "holdout")],
)
def test_splits_are_known_by_their_usual_names(tmp_path: Path, train: str, held_out: str) -> None:
    tree = write_tree(tmp_path / "tree", f"{train}/a/x.png", f"{train}/b/x.png", f"{held_out}/b/x.png")
    conversion = convert_folder(tree, str(tmp_path / "out"))
    assert conversion.source.class_names == ["a", "b"]
    assert (conversion.count_samples("train"), conversion.count_samples("eval")) == (2, 1)


def test_classes_can_have_splits_below(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree", "a/train/x.png", "a/test/x.png", "b/train/more/x.png", "b/test/x.png"
    )
    conversion = convert_folder(tree, str(tmp_path / "out"))
    assert conversion.source.class_names == ["a", "b"]
    assert (conversion.count_samples("train"), conversion.count_samples("eval")) == (2, 2)


@pytest.mark.parametrize(
    ("paths", "error"),
    [
        (
            ["train/a/x.png", "valid/a/x.png", "docs/x.png"],
            r"has train, valid, docs, which may be splits or classes",
        ),
        (["train/x.png", "bus/x.png"], "has train, bus, which may be splits or classes; choose --layout"),
        (["train_images/a/x.png", "val2017/a/x.png"], "has train_images, val2017, which may be splits"),
        (["train/a/x.png", "train/b/x.png", "test/x.png"], "the split test has no folder of a class"),
        (["a/train/x.png", "a/test/x.png", "b/x.png"], "a has test, train below it, which may be splits"),
    ],
)
def test_a_layout_in_doubt_is_refused(tmp_path: Path, paths: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        convert_folder(write_tree(tmp_path / "tree", *paths), str(tmp_path / "out"))


def test_options_decide_a_layout_in_doubt(tmp_path: Path) -> None:
    vehicles = write_tree(tmp_path / "vehicles", "train/x.png", "bus/x.png")
    assert convert_folder(vehicles, str(tmp_path / "v"), layout="class").source.class_names == [
        "bus",
        "train",
    ]
    images = write_tree(
        tmp_path / "images", "train_images/a/x.png", "train_images/b/x.png", "val2017/a/x.png"
    )
    named = convert_folder(images, str(tmp_path / "i"), layout="split/class")
    assert (named.source.class_names, named.count_samples("eval")) == (["a", "b"], 1)
    beside = write_tree(tmp_path / "beside", "train/a/x.png", "train/b/x.png", "docs/x.png", "test/x.png")
    kept = convert_folder(beside, str(tmp_path / "b"), ignore=["docs", "test"])
    assert (kept.source.class_names, kept.count_samples("train")) == (["a", "b"], 2)
    assert "passed over 2 files: 1 in docs, 1 in test" in kept.remarks
    mixed = write_tree(tmp_path / "mixed", "a/train/x.png", "a/odd/x.png", "b/x.png")
    assert convert_folder(mixed, str(tmp_path / "m"), layout="class").count_samples("train") == 3
    with pytest.raises(UserError, match="a/odd cannot be a split"):
        convert_folder(mixed, str(tmp_path / "m"), layout="class/split")
    with pytest.raises(UserError, match=r"--ignore doc: .* has no subfolder of that name"):
        convert_folder(beside, str(tmp_path / "b"), ignore=["doc"])
    with pytest.raises(UserError, match="docs cannot be a split, expected names such as train"):
        convert_folder(beside, str(tmp_path / "b"), layout="split/class")
    with pytest.raises(UserError, match=r"has splits already; .* choose --layout class"):
        convert_folder(images, str(tmp_path / "i"), layout="split/class", eval_list=tmp_path / "list.txt")


def test_passed_over_files_and_classes_without_training_samples_are_counted(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree", "train/a/x.png", "train/b/x.png", "val/a/x.png", "val/c/x.png", "val/top.png"
    )
    for name in ("train/a/notes.txt", "train/b/notes.TXT", "README", "train/a/.DS_Store", "train/b/LICENSE"):
        (tree / name).touch()
    assert convert_folder(tree, str(tmp_path / "out")).remarks == (
        "passed over 5 files: 2 .txt, 1 in no subfolder, 1 hidden, 1 without an extension",
        "passed over 1 files that are in no folder of a class",
        "1 of 3 classes have held-out samples only: c",
    )


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
