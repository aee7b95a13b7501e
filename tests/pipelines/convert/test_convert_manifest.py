"""Tests of converting tables of files: splits, labels, and several files per sample."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from converted_shards import picture, read_shards, shades, written

from perceiver_dist.errors import UserError
from pipelines.convert import convert_manifest

pytestmark = pytest.mark.usefixtures("ray_cluster")


def write_table(folder: Path, rows: list[str], header: str = "path,label,split") -> Path:
    """Write a table, and for every path in it an image whose shade is the number of the row."""
    for number, row in enumerate(rows):
        picture(folder / row.split(",")[0], number)
    table = folder / "files.csv"
    table.write_text("\n".join([header, *rows]) + "\n")
    return table


def test_a_table_is_converted_by_split(tmp_path: Path) -> None:
    rows = [f"{i}.png,{'dog' if i % 2 else 'cat'},{'test' if i < 4 else 'train'}" for i in range(12)]
    out = tmp_path / "pets"
    source = written(convert_manifest(write_table(tmp_path, rows), str(out), samples_per_shard=3))
    assert (source.name, source.modalities, source.class_names) == ("pets", ["image"], ["cat", "dog"])
    assert source.train_shards == str(out / "train-{000000..000002}.tar")
    assert json.loads((out / "classes.json").read_text()) == ["cat", "dog"]
    for pattern, expected in ((source.train_shards, range(4, 12)), (source.eval_shards, range(4))):
        assert shades(pattern) == {i: str(i % 2) for i in expected}


def test_the_order_depends_only_on_the_seed(tmp_path: Path) -> None:
    table = write_table(tmp_path, [f"{i}.png,{i % 2},train" for i in range(20)])
    sources = [written(convert_manifest(table, str(tmp_path / str(i)), seed=i % 2)) for i in (0, 2, 1)]
    first, again, other = (Path(source.train_shards).read_bytes() for source in sources)
    assert first == again
    assert first != other
    names = [each["__key__"].partition("-")[2] for each in read_shards(sources[0].train_shards)]
    assert names != sorted(names, key=int)


def test_without_a_split_column_all_samples_are_for_training_and_reported_so(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["a.png,x", "b.png,y"], header="path,label")
    conversion = convert_manifest(table, str(tmp_path / "2 of them"))
    assert conversion.source.eval_shards == ""
    assert conversion.source.name == "_2_of_them"
    assert (conversion.count_samples("train"), conversion.count_samples("eval")) == (2, 0)
    [remark] = conversion.remarks
    assert remark.endswith("no column 'split': all samples for training, none held out")


def test_numeric_labels_keep_numerical_order(tmp_path: Path) -> None:
    table = write_table(tmp_path, [f"{i}.png,{i},train" for i in range(12)])
    assert convert_manifest(table, str(tmp_path / "out")).source.class_names == [str(i) for i in range(12)]


def test_columns_and_splits_can_have_other_names(tmp_path: Path) -> None:
    """Like the table of ESC-50, with the audio in a folder beside it and numbered folds."""
    for number in range(6):
        picture(tmp_path / "audio" / f"{number}.png", number)
    rows = [f"{i}.png,{i % 5 + 1},{'rain' if i % 2 else 'dog'}" for i in range(6)]
    (tmp_path / "meta.csv").write_text("\n".join(["filename,fold,category", *rows]))
    source = written(
        convert_manifest(
            tmp_path / "meta.csv",
            str(tmp_path / "out"),
            root=tmp_path / "audio",
            path_columns=["filename"],
            label_column="category",
            split_column="fold",
            eval_splits=["5"],
        )
    )
    assert shades(source.eval_shards) == {4: "0"}
    assert shades(source.train_shards) == {0: "0", 1: "1", 2: "0", 3: "1", 5: "1"}


def test_a_label_separator_makes_a_multilabel_source(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["a.png,x;y", "b.png,", "c.png,z; x"], header="path,label")
    source = written(convert_manifest(table, str(tmp_path / "out"), label_separator=";"))
    assert (source.task, source.class_names) == ("multilabel", ["x", "y", "z"])
    assert shades(source.train_shards) == {0: "0,1", 1: "", 2: "0,2"}


def test_a_sample_can_have_several_files_and_lack_some(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
        np.save(tmp_path / f"{number}.npy", np.full((5, 3), number, np.float32))
    rows = ["0.png,0.npy,a", "1.png,,b", ",2.npy,a"]
    (tmp_path / "files.csv").write_text("\n".join(["picture,cloud,label", *rows]))
    table = tmp_path / "files.csv"
    source = written(convert_manifest(table, str(tmp_path / "out"), path_columns=["picture", "cloud"]))
    assert source.modalities == ["image", "points"]
    found = {frozenset(each) & {"png", "npy"} for each in read_shards(source.train_shards)}
    assert found == {frozenset({"png", "npy"}), frozenset({"png"}), frozenset({"npy"})}


def test_parquet_tables_can_hold_lists_of_labels(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    columns = {"path": [f"{i}.png" for i in range(3)], "split": ["train", "train", "val"]}
    pq.write_table(pa.table({**columns, "label": [7, 10, 7]}), tmp_path / "one.parquet")
    pq.write_table(pa.table({**columns, "label": [["a", "b"], ["b"], []]}), tmp_path / "many.parquet")
    one = written(convert_manifest(tmp_path / "one.parquet", str(tmp_path / "one")))
    assert (one.class_names, shades(one.train_shards), shades(one.eval_shards)) == (
        ["7", "10"],
        {0: "0", 1: "1"},
        {2: "0"},
    )
    many = written(convert_manifest(tmp_path / "many.parquet", str(tmp_path / "many")))
    assert many.task == "multilabel"
    assert shades(many.train_shards) | shades(many.eval_shards) == {0: "0,1", 1: "1", 2: ""}


@pytest.mark.parametrize(
    ("encoding", "option"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", None),
        ("utf-32", None),
        ("cp1252", "cp1252"),
        ("utf-16-le", "utf-16-le"),
    ],
)
def test_tables_may_have_any_encoding(tmp_path: Path, encoding: str, option: str | None) -> None:
    picture(tmp_path / "a.png")
    table = tmp_path / "files.csv"
    table.write_bytes("path,label\na.png,K\u00e4se\na.png,Br\u00f6t\n".encode(encoding))
    conversion = convert_manifest(table, str(tmp_path / "out"), encoding=option)
    assert conversion.source.class_names == ["Br\u00f6t", "K\u00e4se"]


@pytest.mark.parametrize(
    ("encoding", "option", "error"),
    [
        (
            "cp1252",
            None,
            r"is not text in utf-8 \(byte 0xe4 at position 18\); .* name its encoding with --encoding",
        ),
        ("utf-16-le", None, "holds zero bytes, expected text"),
        ("utf-8", "ascii", r"is not text in ascii \(byte 0xc3"),
        ("utf-8", "utf-5", "--encoding is 'utf-5', must be one such as"),
    ],
)
def test_a_table_in_another_encoding_is_one_line(
    tmp_path: Path, encoding: str, option: str | None, error: str
) -> None:
    (tmp_path / "files.csv").write_bytes("path,label\na.png,K\u00e4se\n".encode(encoding))
    with pytest.raises(UserError, match=error):
        convert_manifest(tmp_path / "files.csv", str(tmp_path / "out"), encoding=option)


def test_whole_numbers_that_became_floats_are_whole_numbers(tmp_path: Path) -> None:
    table = write_table(
        tmp_path,
        [f"{name}.png,{label}" for name, label in zip("abc", ("2.0", "10.0", "2"), strict=True)],
        header="path,label",
    )
    assert convert_manifest(table, str(tmp_path / "out")).source.class_names == ["2", "10"]
    columns = {"path": ["a.png", "b.png", "c.png"], "label": [2.0, 10.0, 2.0]}
    pq.write_table(pa.table(columns), tmp_path / "floats.parquet")
    assert convert_manifest(tmp_path / "floats.parquet", str(tmp_path / "o")).source.class_names == [
        "2",
        "10",
    ]
    versions = write_table(tmp_path, ["a.png,1.0", "b.png,1.5"], header="path,label")
    assert convert_manifest(versions, str(tmp_path / "out")).source.class_names == ["1.0", "1.5"]


def test_a_missing_label_of_a_parquet_table_is_no_class(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    pq.write_table(
        pa.table({"path": ["a.png", "a.png"], "label": [1.0, float("nan")]}), tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match="row 1: the label is empty"):
        convert_manifest(tmp_path / "x.parquet", str(tmp_path / "out"))
    pq.write_table(pa.table({"path": ["a.png", None], "label": ["x", "y"]}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match="row 1: path: empty; name a file"):
        convert_manifest(tmp_path / "y.parquet", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("path,label\na,b.png,x\n", "line 2: has 3 entries, expected 2 as in the first line; put quotes"),
        ("file,label\na.png,x\n", "has no column 'path', only file, label"),
        ("path,label\n", "lists 0 samples"),
        ("path,label\na.png,x\na.png,x\n", "has 1 label, a classification needs at least 2"),
        ("path,label\n,x\n", "line 2: path: empty"),
        ("path,label\na.png,\n", "line 2: the label is empty"),
        ("path,label\na.png,x\nb.png,y\n", r"line 3: .*b.png: no such file"),
        ("path,label\na.txt,x\n", "line 2: a.txt has an unknown file type; known are jpg"),
        ("path,label,split\na.png,x,hold\n", "line 2: split is 'hold', expected a usual name such as train"),
    ],
)
def test_an_invalid_table_is_reported_with_the_row(tmp_path: Path, text: str, error: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    (tmp_path / "files.csv").write_text(text)
    with pytest.raises(UserError, match=error):
        convert_manifest(tmp_path / "files.csv", str(tmp_path / "out"))


def test_two_files_of_one_modality_and_invalid_parquet_are_rejected(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "files.csv").write_text("one,two,label\na.png,a.png,x\n")
    with pytest.raises(UserError, match="have the same modality"):
        convert_manifest(tmp_path / "files.csv", str(tmp_path / "out"), path_columns=["one", "two"])
    (tmp_path / "files.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="is not a Parquet file"):
        convert_manifest(tmp_path / "files.parquet", str(tmp_path / "out"))
