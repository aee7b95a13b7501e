"""Folder of predictions: it resumes at the first missing part, and rejects other settings."""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perceiver_dist.errors import UserError
from perceiver_dist.inference.prediction_parts import PredictionParts, PredictionSettings

SETTINGS = PredictionSettings(
    model="runs/a/step-00000010",
    weights="w",
    source="clips",
    shards="x.tar",
    content="c",
    samples=21,
    batch=4,
    samples_per_part=8,
    top=5,
    embeddings=False,
)


def part_with(key: str) -> list[pa.Table]:
    return [pa.table({"key": [key]})]


def test_prediction_resumes_at_the_first_missing_part(tmp_path: Path) -> None:
    parts = PredictionParts(str(tmp_path), SETTINGS)
    assert (SETTINGS.parts, SETTINGS.units_per_part, parts.first_missing()) == (3, 2, 0)
    for number in (0, 1, 2):
        parts.write(number, part_with(str(number)))
    assert PredictionParts(str(tmp_path), SETTINGS).first_missing() == 3
    (tmp_path / "part-00000001.parquet").unlink()
    assert PredictionParts(str(tmp_path), SETTINGS).first_missing() == 1


def test_the_folder_is_read_as_one_table(tmp_path: Path) -> None:
    parts = PredictionParts(str(tmp_path), SETTINGS)
    parts.write(0, part_with("a") + part_with("b"))
    parts.write(1, part_with("c"))
    assert pq.read_table(tmp_path)["key"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "value"), [("model", "runs/b"), ("weights", "v"), ("content", "d"), ("top", 1), ("batch", 2)]
)
def test_other_settings_are_rejected(tmp_path: Path, name: str, value: object) -> None:
    PredictionParts(str(tmp_path), SETTINGS)
    before = getattr(SETTINGS, name)
    message = f"--out is {tmp_path}, which holds predictions with {name} {before}, now it is {value}; "
    with pytest.raises(UserError, match=re.escape(message)):
        PredictionParts(str(tmp_path), replace(SETTINGS, **{name: value}))  # type: ignore[arg-type]


def test_parts_with_unknown_settings_are_rejected(tmp_path: Path) -> None:
    PredictionParts(str(tmp_path), SETTINGS).write(0, part_with("a"))
    (tmp_path / "_predictions.json").unlink()
    with pytest.raises(
        UserError, match=r"which holds parts but no _predictions\.json; choose another folder"
    ):
        PredictionParts(str(tmp_path), SETTINGS)
