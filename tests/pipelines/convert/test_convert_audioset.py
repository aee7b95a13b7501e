"""Tests of the AudioSet converter: published lists and downloaded clips give a multilabel source."""

from pathlib import Path
from typing import TypedDict

import pytest
from converted_shards import picture, shades, written

from perceiver_dist.errors import UserError
from pipelines.convert import convert_audioset

CLASSES = 'index,mid,display_name\n0,/m/a,"Speech"\n1,/m/b,"Bark, dog"\n2,/m/c,Rain\n'
HEAD = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=4\n# YTID, start_seconds, end_seconds, labels\n"
TRAIN = HEAD + '--a-_1, 30.000, 40.000, "/m/b,/m/a"\nbb, 0.500, 10.500, "/m/c"\ngone, 0.000, 10.000, "/m/c"\n'
EVAL = HEAD + 'cc, 7.000, 17.000, "/m/a,/m/c"\n'


class Lists(TypedDict):
    classes: Path
    train: Path
    eval: Path


def write_lists(folder: Path) -> Lists:
    files: Lists = {
        "classes": folder / "classes.csv",
        "train": folder / "train.csv",
        "eval": folder / "eval.csv",
    }
    files["classes"].write_text(CLASSES)
    files["train"].write_text(TRAIN)
    files["eval"].write_text(EVAL)
    return files


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "names",
    [
        ["--a-_1", "bb", "cc"],
        ["--a-_1_30", "bb_0", "cc_7"],
        ["--a-_1_30.000", "bb_0.500", "cc_7.000"],
        ["--a-_1_30000", "bb_500", "cc_7000"],
        ["deep/--a-_1_30_40", "bb_0_10", "cc_7_17"],
        ["--a-_1_30000_40000", "deep/er/bb_500_10500", "cc_7000_17000"],
    ],
)
def test_clips_are_found_by_their_usual_names(tmp_path: Path, names: list[str]) -> None:
    """Images stand in for clips: only the name matters."""
    for shade, name in enumerate(names):
        picture(tmp_path / "clips" / f"{name}.png", shade)
    conversion = convert_audioset(tmp_path / "clips", out=str(tmp_path / "out"), **write_lists(tmp_path))
    source = written(conversion)
    assert (source.task, source.class_names) == ("multilabel", ["Speech", "Bark, dog", "Rain"])
    assert shades(source.train_shards) == {0: "0,1", 1: "2"}
    assert shades(source.eval_shards) == {2: "0,2"}
    assert [remark.partition(": ")[2].partition(" clips")[0] for remark in conversion.remarks] == ["1 of 3"]


def test_invalid_lists_are_rejected(tmp_path: Path) -> None:
    lists = write_lists(tmp_path)
    with pytest.raises(UserError, match="clips: no such folder"):
        convert_audioset(tmp_path / "clips", out=str(tmp_path / "out"), **lists)
    (tmp_path / "clips").mkdir()
    with pytest.raises(UserError, match="none of them for training"):
        convert_audioset(tmp_path / "clips", out=str(tmp_path / "out"), **lists)
    picture(tmp_path / "clips" / "bb.png")
    lists["train"].write_text('bb, 0.500, 10.500, "/m/x"\n')
    with pytest.raises(UserError, match="'bb' has the label /m/x, which is not in the list of classes"):
        convert_audioset(tmp_path / "clips", out=str(tmp_path / "out"), **lists)
    lists["train"].write_text("bb, 0.500\n")
    with pytest.raises(UserError, match="line 1: 2 entries, expected 3 or 4 as published"):
        convert_audioset(tmp_path / "clips", out=str(tmp_path / "out"), **lists)
