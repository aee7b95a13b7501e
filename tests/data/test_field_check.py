"""Tests of the check that samples have the fields that a run reads."""

from dataclasses import replace
from pathlib import Path

import pytest
from tar_files import index_of, write_tar

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.field_check import check_fields
from perceiver_dist.data.shard_indexing import SourceData
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, VideoInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import SourceConfig

MODEL = ModelConfig(image=ImageInput(), audio=AudioInput(), video=VideoInput())
PETS = SourceConfig(
    name="pets", train_shards="t", eval_shards="e", modalities=["image", "audio"], num_classes=2
)


def checked(
    folder: Path, train: dict[str, int], held_out: dict[str, int], source: SourceConfig = PETS
) -> list[str]:
    """Check a source whose samples have fields; a field with count c is in the first c of 200 samples."""
    indexes = []
    for name, counts in (("train", train), ("eval", held_out)):
        members = [(f"{n}.{field}", b"") for n in range(200) for field, count in counts.items() if n < count]
        indexes.append(index_of(write_tar(folder / f"{name}.tar", members)))
    return check_fields(RunConfig(MODEL, [source]), {source.name: SourceData(*indexes)})


ALL = {"png": 200, "wav": 200, "cls": 200}


def test_samples_may_lack_modalities(tmp_path: Path) -> None:
    assert checked(tmp_path, ALL, ALL) == []
    assert checked(tmp_path, {"cls": 200, "jpg": 2, "png": 1, "flac": 3}, {**ALL, "png": 2}) == []


def test_the_sound_of_a_video_is_in_its_file(tmp_path: Path) -> None:
    clips = replace(PETS, modalities=["video", "audio"], label="json.label")
    assert checked(tmp_path, {"mp4": 200, "json": 200}, {"webm": 200, "json": 200}, clips) == []


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"heic": 200, "wav": 200, "cls": 200},
            "source 'pets': none of 200 training samples has the modality image; their fields are heic, wav, cls; "
            "correct the source's modalities, label or shards",
        ),
        (
            {"png": 200, "cls": 200},
            "none of 200 training samples has the modality audio; their fields are png, cls",
        ),
        ({"png": 200, "wav": 200, "2024.cls": 200}, "none of 200 training samples has the label field 'cls'"),
    ],
)
def test_what_no_training_sample_has_is_an_error(tmp_path: Path, fields: dict[str, int], error: str) -> None:
    with pytest.raises(UserError, match=error):
        checked(tmp_path, fields, ALL)


def test_what_hardly_any_sample_has_is_a_warning(tmp_path: Path) -> None:
    assert checked(tmp_path, {**ALL, "wav": 1}, {"txt": 200, "wav": 200, "png": 1}) == [
        "source 'pets': only 1 of 200 training samples have the modality audio; their fields are png, cls, wav",
        "source 'pets': none of 200 held-out samples has the label field 'cls'; their fields are txt, wav, png",
        "source 'pets': only 1 of 200 held-out samples have the modality image; their fields are txt, wav, png",
    ]
