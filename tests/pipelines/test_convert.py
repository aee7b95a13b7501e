"""Converting known data, and the job that does it."""

import gzip
import json
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
import yaml
from mesh_files import SQUARE, off
from PIL import Image

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ImageInput
from pipelines.convert import convert_fashion_mnist, convert_folder, convert_manifest, convert_modelnet
from pipelines.convert.fashion_mnist import read_idx
from pipelines.decode import decode_image
from pipelines.source import SourceConfig

PROJECT = Path(__file__).parents[2]


def write_manifest(folder: Path, rows: list[str], header: str = "path,label,split") -> Path:
    """A manifest, and for every path of it a small image whose shade is the row's number."""
    for number, row in enumerate(rows):
        Image.new("L", (8, 8), number).save(folder / row.split(",")[0], "PNG")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join([header, *rows]) + "\n")
    return manifest


def read_shards(pattern: str) -> list[dict]:
    return list(webdataset.WebDataset(pattern, shardshuffle=False))


def test_a_manifest_becomes_shards_by_split(tmp_path):
    rows = [f"{i}.png,{'dog' if i % 2 else 'cat'},{'test' if i < 4 else 'train'}" for i in range(12)]
    source = convert_manifest(write_manifest(tmp_path, rows), tmp_path / "pets", samples_per_shard=3)
    assert (source.name, source.modalities, source.class_names) == ("pets", ["image"], ["cat", "dog"])
    assert source.train_shards == str(tmp_path / "pets" / "train-{000000..000002}.tar")
    assert json.loads((tmp_path / "pets" / "classes.json").read_text()) == ["cat", "dog"]
    for pattern, expected in ((source.train_shards, range(4, 12)), (source.eval_shards, range(4))):
        read = {
            decode_image(each["png"], ImageInput())[0, 0, 0]: int(each["cls"])
            for each in read_shards(pattern)
        }
        assert read == {i: i % 2 for i in expected}


def test_the_order_is_shuffled_by_the_seed_alone(tmp_path):
    manifest = write_manifest(tmp_path, [f"{i}.png,{i % 2},train" for i in range(20)])
    written = [convert_manifest(manifest, tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1))]
    first, again, other = (Path(source.train_shards).read_bytes() for source in written)
    assert first == again
    assert first != other
    names = [each["__key__"].partition("-")[2] for each in read_shards(written[0].train_shards)]
    assert names != sorted(names, key=int)


def test_without_a_split_column_everything_is_for_training(tmp_path):
    manifest = write_manifest(tmp_path, ["a.png,x", "b.png,y"], header="path,label")
    source = convert_manifest(manifest, tmp_path / "2 of them")
    assert source.eval_shards == ""
    assert source.name == "_2_of_them"


def test_numbers_as_labels_keep_their_order(tmp_path):
    manifest = write_manifest(tmp_path, [f"{i}.png,{i},train" for i in range(12)])
    assert convert_manifest(manifest, tmp_path / "out").class_names == [str(i) for i in range(12)]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("file,label\n", "has no column 'path', only file, label"),
        ("path,label\n", "lists 0 files"),
        ("path,label\na.png,x\na.png,x\n", "has 1 label, a classification needs at least 2"),
        ("path,label\na.png,\n", "line 2: path is 'a.png' and label is ''"),
        ("path,label\na.png,x\nb.png,y\n", "line 3: .*b.png: no such file"),
        ("path,label\na.txt,x\n", "line 2: a.txt is no medium known here; known are jpg"),
        ("path,label,split\na.png,x,hold\n", "line 2: split is 'hold', must be one of train, eval"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_where(tmp_path, text, error):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(UserError, match=error):
        convert_manifest(tmp_path / "manifest.csv", tmp_path / "out")


def write_idx(path: Path, values: np.ndarray, packed: bool) -> None:
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(data) if packed else data)


def write_fashion_mnist(folder: Path, packed: bool = True) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte", images, packed)
        write_idx(folder / f"{split}-labels-idx1-ubyte", np.arange(100, dtype=np.uint8) % 10, packed)
    return images


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_become_png_images_with_the_same_pixels(tmp_path, packed):
    images = write_fashion_mnist(tmp_path, packed)
    source = convert_fashion_mnist(tmp_path, tmp_path / "out", train_per_class=3)
    read = read_shards(source.train_shards)
    assert np.bincount([int(each["cls"]) for each in read]).tolist() == [3] * 10
    for each in read:
        pixels = np.asarray(Image.open(BytesIO(each["png"])))
        np.testing.assert_array_equal(pixels, images[int(each["__key__"].partition("_")[2])])
    assert len(read_shards(source.eval_shards)) == 100


def test_more_images_than_there_are_cannot_be_asked_for(tmp_path):
    write_fashion_mnist(tmp_path)
    with pytest.raises(UserError, match="11 images per class asked for, train has between 1 and 10"):
        convert_fashion_mnist(tmp_path, tmp_path / "out", train_per_class=11)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\x08\x03", struct.pack(">HBBI", 0, 8, 1, 9) + b"12345678", b"PK\3\4aaaa"]
)
def test_what_is_no_idx_file_is_refused(tmp_path, data):
    (tmp_path / "images").write_bytes(data)
    with pytest.raises(UserError, match="is no idx file"):
        read_idx(tmp_path / "images")


def write_modelnet(folder: Path, *paths: str) -> Path:
    """A tree of meshes as ModelNet's, each with its own path as a comment."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(off(*SQUARE) + f"# {path}".encode())
    return folder


def test_the_meshes_of_modelnet_become_shards(tmp_path):
    train = [f"{label}/train/{label}_{i}.off" for label in ("night_stand", "chair") for i in range(3)]
    rest = ["chair/test/chair_7.off", "night_stand/train/.chair_1.off", "chair/train/notes.txt"]
    source = convert_modelnet(write_modelnet(tmp_path / "tree", *train, *rest), tmp_path / "m40", 4)
    assert (source.name, source.modalities, source.class_names) == (
        "m40",
        ["points"],
        ["chair", "night_stand"],
    )
    assert source.train_shards == str(tmp_path / "m40" / "train-{000000..000001}.tar")
    for pattern, expected in ((source.train_shards, train), (source.eval_shards, rest[:1])):
        read = {each["off"].decode().rpartition("# ")[2]: int(each["cls"]) for each in read_shards(pattern)}
        assert read == {path: source.class_names.index(path.partition("/")[0]) for path in expected}


@pytest.mark.parametrize(
    ("paths", "error"),
    [
        ([], r"tree: CLASS/train/\*\.off and CLASS/test/\*\.off: lists 0 files, none of them for training"),
        (["chair/test/a.off"], "lists 1 files, none of them for training"),
        (["chair/train/a.off"], "has 1 label"),
    ],
)
def test_a_folder_that_is_not_modelnet_is_refused(tmp_path, paths, error):
    with pytest.raises(UserError, match=error):
        convert_modelnet(write_modelnet(tmp_path / "tree", *paths), tmp_path / "out")


def write_tree(folder: Path, *paths: str) -> Path:
    """Small images, each of its own shade, in a tree of folders."""
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / path, "PNG")
    return folder


def shades(pattern: str) -> dict[int, int]:
    """Class by shade of what `write_tree` wrote and a converter put into shards."""
    return {
        int(decode_image(each["png"], ImageInput())[0, 0, 0]): int(each["cls"])
        for each in read_shards(pattern)
    }


def test_folders_of_classes_become_shards_and_every_class_is_held_out(tmp_path):
    paths = [f"{label}/{deep}{i}.png" for label in ("dog", "cat") for deep in ("", "more/") for i in range(5)]
    tree = write_tree(tmp_path / "tree", *paths, "dog/.hidden.png")
    (tree / "cat" / "notes.txt").touch()
    source = convert_folder(tree, tmp_path / "pets", eval_fraction=0.2)
    assert source.class_names == ["cat", "dog"]
    train, held_out = shades(source.train_shards), shades(source.eval_shards)
    assert train | held_out == {number: int(number < 10) for number in range(20)}
    assert not train.keys() & held_out.keys()
    assert sorted(held_out.values()) == [0, 0, 1, 1]
    assert convert_folder(tree, tmp_path / "all", eval_fraction=0).eval_shards == ""


def test_folders_of_splits_become_their_shards(tmp_path):
    tree = write_tree(tmp_path / "tree", "train/a/x.png", "train/b/c/x.png", "val/b/x.png", "val/top.png")
    source = convert_folder(tree, tmp_path / "out")
    assert (shades(source.train_shards), shades(source.eval_shards)) == ({0: 0, 1: 1}, {2: 1})


@pytest.mark.parametrize(
    ("paths", "fraction", "error"),
    [
        (["top.png"], 0.1, "lists 0 files, none of them for training"),
        (["a/x.png", "a/y.png"], 0.1, "has 1 label"),
        (["a/x.png", "b/x.png"], 1.0, "--eval_fraction is 1.0, must be from 0 to below 1"),
    ],
)
def test_a_tree_that_cannot_be_used_is_refused(tmp_path, paths, fraction, error):
    with pytest.raises(UserError, match=error):
        convert_folder(write_tree(tmp_path / "tree", *paths), tmp_path / "out", fraction)
    with pytest.raises(UserError, match=r"folder .*nowhere: no such folder"):
        convert_folder(tmp_path / "nowhere", tmp_path / "out")


def prepare_data(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROJECT / "jobs" / "prepare_data.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_job_prints_the_source_as_a_config_takes_it(tmp_path):
    manifest = write_manifest(tmp_path, ["a.png,x,train", "b.png,y,test"])
    done = prepare_data("manifest", "--csv", str(manifest), "--out", str(tmp_path / "pets"))
    assert done.returncode == 0, done.stderr
    (source,) = yaml.safe_load(done.stdout)["sources"]
    assert SourceConfig(**source).class_names == ["x", "y"]
    assert read_shards(source["eval_shards"])[0]["cls"] == b"1"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["manifest", "--csv", "nowhere.csv", "--out", "x"], "nowhere.csv: no such file"),
        (["manifest", "--csv", "a.csv", "--out", "x", "--seed", "abc"], "seed"),
        (["imagenet"], "imagenet"),
    ],
)
def test_the_job_reports_a_mistake_in_one_line(arguments, error):
    done = prepare_data(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert error in done.stderr
