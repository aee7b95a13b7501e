"""Unit maker: arrays of fixed shape from samples that may lack anything, with the same bytes every time."""

import json
import re
import wave
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_files import SQUARE, npy, off
from PIL import Image
from tar_files import index_of, write_tar

from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput
from pipelines.demo.synthetic_clips import render_clip
from pipelines.errors import SampleError
from pipelines.shards.source import SourceConfig
from pipelines.units.plan import EvaluationPlan, TrainingPlan
from pipelines.units.unit_maker import Unit, UnitMaker

INPUTS: dict[str, ModalityInput] = {
    "image": ImageInput(height=4, width=6, channels=1),
    "audio": AudioInput(sample_rate=8000, samples=800, segment=100),
    "video": VideoInput(frames=4, frames_per_second=16.0, height=8, width=8),
    "points": PointCloudInput(points=32),
}
LENGTH = 3000
"""Values of the test sound, in which value i is at position i, so that a window shows where it was cut."""

Fields = dict[str, bytes]


def picture(shade: int) -> bytes:
    """Return a PNG of one shade, of the size that the inputs expect."""
    target = BytesIO()
    Image.new("L", (6, 4), shade).save(target, "PNG")
    return target.getvalue()


@cache
def rising_sound(length: int = LENGTH) -> bytes:
    """Return a WAV file whose values are their positions."""
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.arange(length, dtype="<i2").tobytes())
    return target.getvalue()


@cache
def clip() -> bytes:
    """Return a video with an audio track."""
    return render_clip(0, np.random.default_rng(0))


def maker(
    folder: Path,
    samples: list[Fields],
    modalities: str,
    plan: TrainingPlan | EvaluationPlan | None = None,
    **settings: Any,
) -> UnitMaker:
    """Return a maker of units of these samples; by default, of one evaluation unit with all of them."""
    members = [
        (f"{number}.{field}", content)
        for number, fields in enumerate(samples)
        for field, content in fields.items()
    ]
    names = modalities.split()
    return UnitMaker(
        source=SourceConfig("clips", "x.tar", names, **{"num_classes": 3, **settings}),
        inputs={name: INPUTS[name] for name in names},
        index=index_of(write_tar(folder / "x.tar", members)),
        plan=plan or EvaluationPlan(len(samples), len(samples), lanes=1),
    )


DOTS = "a field begins after the first dot of a file's name"


def error_of(folder: Path, sample: Fields, **settings: Any) -> str:
    """Return the reason for which a sample is quarantined."""
    unit = maker(folder, [{"png": picture(1), **sample}], "image", **settings).make(0)
    [(shard, key, reason)] = unit["quarantined"].tolist()
    assert (shard, key) == (f"{folder}/x.tar", "0")
    return reason


def training_plan(samples: int, unit_size: int) -> TrainingPlan:
    """Return a plan of the source that `maker` makes."""
    return TrainingPlan("clips", samples, unit_size, chunk_size=2, seed=0)


def labels_of(folder: Path, field: str, content: str, **settings: Any) -> int | list[int]:
    """Return the label of a sample with this field."""
    return maker(folder, [{field: content.encode()}], "image", **settings).make(0)["label"][0].tolist()


def same(first: Unit, second: Unit) -> bool:
    """Return whether two units have the same arrays."""
    return list(first) == list(second) and all(np.array_equal(first[name], second[name]) for name in first)


def test_shapes_and_dtypes_of_a_unit(tmp_path: Path) -> None:
    sample = {"png": picture(9), "wav": rising_sound(), "mp4": clip(), "off": off(*SQUARE), "cls": b"2"}
    unit = maker(tmp_path, [sample] * 2, "image audio video points").make(0)
    assert {name: (str(array.dtype), array.shape) for name, array in unit.items()} == {
        "unit": ("int64", (1,)),
        "keys": ("object", (2,)),
        "valid": ("bool", (2,)),
        "label": ("int64", (2,)),
        "quarantined": ("object", (0, 3)),
        "image": ("uint8", (2, 4, 6, 1)),
        "image_present": ("bool", (2,)),
        "audio": ("int16", (2, 800)),
        "audio_present": ("bool", (2,)),
        "video": ("uint8", (2, 4, 8, 8, 3)),
        "video_present": ("bool", (2,)),
        "points": ("float32", (2, 32, 3)),
        "points_present": ("bool", (2,)),
    }
    assert all(unit[name].all() for name in unit if name == "valid" or name.endswith("_present"))
    assert unit["keys"].tolist() == [f"{tmp_path}/x.tar/0", f"{tmp_path}/x.tar/1"]
    assert unit["label"].tolist() == [2, 2]


def test_missing_modality_is_zeros_and_not_present(tmp_path: Path) -> None:
    samples = [{"png": picture(9), "cls": b"0"}, {"wav": rising_sound(), "cls": b"1"}, {"cls": b"2"}]
    unit = maker(tmp_path, samples, "image audio").make(0)
    assert unit["image_present"].tolist() == [True, False, False]
    assert unit["audio_present"].tolist() == [False, True, False]
    assert [int(image.max()) for image in unit["image"]] == [9, 0, 0]
    assert [bool(sound.any()) for sound in unit["audio"]] == [False, True, False]
    assert unit["valid"].all()


def test_audio_is_the_videos_track_if_there_is_no_audio_file(tmp_path: Path) -> None:
    samples = [{"mp4": clip(), "cls": b"0"}, {"mp4": clip(), "wav": rising_sound(), "cls": b"0"}]
    unit = maker(tmp_path, samples, "audio video").make(0)
    assert unit["audio_present"].tolist() == [True, True]
    assert not np.array_equal(unit["audio"][0], unit["audio"][1])
    assert np.array_equal(np.diff(unit["audio"][1]), np.ones(799))
    assert np.array_equal(unit["video"][0], unit["video"][1])


def test_audio_track_is_read_from_a_video_whose_frames_are_not_wanted(tmp_path: Path) -> None:
    unit = maker(tmp_path, [{"mp4": clip(), "cls": b"0"}], "audio").make(0)
    assert "video" not in unit
    assert unit["audio_present"].tolist() == [True]
    assert unit["audio"].any()


def test_evaluation_units_are_padded(tmp_path: Path) -> None:
    samples = [{"png": picture(9), "cls": b"1"} for _ in range(3)]
    units = [
        maker(tmp_path, samples, "image", EvaluationPlan(3, 2, lanes=3)).make(number) for number in range(3)
    ]
    assert [unit["valid"].tolist() for unit in units] == [[True, True], [True, False], [False, False]]
    assert units[1]["keys"].tolist() == [f"{tmp_path}/x.tar/2", ""]
    assert [unit["image"].shape for unit in units] == [(2, 4, 6, 1)] * 3
    assert not units[2]["image"].any()
    assert not units[2]["image_present"].any()


def test_unit_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    samples = [{"wav": rising_sound(), "cls": b"1"} for _ in range(5)]
    plan = TrainingPlan("clips", 5, unit_size=4, chunk_size=2, seed=0)
    first = maker(tmp_path, samples, "audio", plan)
    units = [first.make(number) for number in range(3)]
    again = maker(tmp_path, samples, "audio", plan)
    assert all(same(again.make(number), units[number]) for number in (2, 0, 1))


def test_training_windows_vary_and_lie_inside_the_sound(tmp_path: Path) -> None:
    plan = TrainingPlan("clips", 1, unit_size=8, chunk_size=1, seed=0)
    training = maker(tmp_path, [{"wav": rising_sound(), "cls": b"1"}], "audio", plan)
    starts = [int(sound[0]) for number in range(4) for sound in training.make(number)["audio"]]
    assert len(set(starts)) == 32
    assert min(starts) < 0.2 * (LENGTH - 800)
    assert 0.8 * (LENGTH - 800) < max(starts) <= LENGTH - 800


def test_windows_depend_on_the_seed(tmp_path: Path) -> None:
    units = []
    for seed in (0, 1):
        plan = TrainingPlan("clips", 1, unit_size=1, chunk_size=1, seed=seed)
        units.append(maker(tmp_path, [{"wav": rising_sound(), "cls": b"1"}], "audio", plan).make(0))
    assert not same(*units)


def test_points_differ_between_rows_and_are_the_same_every_time(tmp_path: Path) -> None:
    plan = TrainingPlan("clips", 1, unit_size=2, chunk_size=1, seed=0)
    training = maker(tmp_path, [{"off": off(*SQUARE), "cls": b"1"}], "points", plan)
    units = [training.make(number) for number in range(2)]
    assert len({cloud.tobytes() for unit in units for cloud in unit["points"]}) == 4
    assert all(same(training.make(number), unit) for number, unit in enumerate(units))


def test_points_of_a_held_out_sample_are_fixed_and_not_augmented(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).normal(size=(32, 3))
    samples = [{"npy": npy(cloud, "<f8"), "cls": b"1"}, {"off": off(*SQUARE), "cls": b"1"}]
    unit = maker(tmp_path, samples, "points").make(0)
    expected = cloud - cloud.mean(axis=0)
    expected /= np.abs(expected).max()
    np.testing.assert_allclose(np.sort(unit["points"][0], axis=0), np.sort(expected, axis=0), atol=1e-6)
    alone = [maker(tmp_path, samples, "points", EvaluationPlan(2, 1, lanes=1)).make(row) for row in range(2)]
    assert [each["points"][0].tobytes() for each in alone] == [each.tobytes() for each in unit["points"]]


def test_last_of_two_fields_of_one_modality_is_decoded(tmp_path: Path) -> None:
    samples = [{"npy": b"damaged", "off": off(*SQUARE), "cls": b"1"}]
    assert maker(tmp_path, samples, "points").make(0)["points_present"].tolist() == [True]


def test_evaluation_windows_are_centred(tmp_path: Path) -> None:
    unit = maker(tmp_path, [{"wav": rising_sound(), "cls": b"1"}], "audio").make(0)
    assert unit["audio"][0].tolist() == list(range((LENGTH - 800) // 2, (LENGTH + 800) // 2))


@pytest.mark.parametrize(
    ("label", "field", "content", "value"),
    [
        ("cls", "cls", "2", 2),
        ("cls", "cls", " 1.0\n", 1),
        ("json.label", "json", json.dumps({"label": 2, "other": "x"}), 2),
        ("json.label", "json", json.dumps({"label": [1.0]}), 1),
        ("txt", "TXT", "0", 0),
    ],
)
def test_label_of_a_softmax_source(tmp_path: Path, label: str, field: str, content: str, value: int) -> None:
    assert labels_of(tmp_path, field, content, label=label) == value


@pytest.mark.parametrize(
    ("label", "content", "classes"),
    [
        ("txt", "0,2", [1, 0, 1]),
        ("txt", " 2 , 1\n", [0, 1, 1]),
        ("txt", "", [0, 0, 0]),
        ("json.tags", '{"tags": [0, 1, 1]}', [1, 1, 0]),
        ("json.tags", '{"tags": []}', [0, 0, 0]),
        ("json.tags", '{"tags": 2}', [0, 0, 1]),
    ],
)
def test_labels_of_a_multilabel_source(tmp_path: Path, label: str, content: str, classes: list[int]) -> None:
    field = label.partition(".")[0]
    assert labels_of(tmp_path, field, content, label=label, task="multilabel") == classes


def test_labels_of_a_multilabel_unit_are_bytes(tmp_path: Path) -> None:
    unit = maker(tmp_path, [{"cls": b"0"}] * 2, "image", task="multilabel").make(0)
    assert (unit["label"].dtype, unit["label"].shape) == (np.dtype(np.uint8), (2, 3))


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        (
            {"cls": b"3"},
            {},
            "label 3 is out of range 0 .. 2; correct the sample or the source's num_classes",
        ),
        (
            {"cls": b"0,-1"},
            {"task": "multilabel"},
            "label -1 is out of range 0 .. 2; correct the sample or the source's num_classes",
        ),
        ({"txt": b"1"}, {}, f"has no label field 'cls', only png, txt; {DOTS}"),
        ({"cls": b"1"}, {"label": "json.label"}, f"has no label field 'json', only cls, png; {DOTS}"),
        ({"cls": b"cat\n"}, {}, r"label field 'cls' holds 'cat\n', expected whole numbers"),
        ({"cls": b"nan"}, {}, "label field 'cls' holds 'nan', expected whole numbers"),
        ({"cls": b"\xff"}, {}, "label field 'cls' holds '\ufffd', expected whole numbers"),
        ({"cls": b"0,1"}, {}, "has 2 labels [0, 1], a softmax source needs exactly one"),
        ({"cls": b""}, {}, "has 0 labels [], a softmax source needs exactly one"),
    ],
)
def test_bad_label_is_quarantined_with_its_reason(
    tmp_path: Path, fields: Fields, settings: dict[str, Any], message: str
) -> None:
    assert error_of(tmp_path, fields, **settings) == message


@pytest.mark.parametrize(
    "content",
    [
        '{"other": 1}',
        '{"label": "1"}',
        '{"label": 1.5}',
        '{"label": NaN}',
        '{"label": true}',
        "[1]",
        "{",
        "1",
    ],
)
def test_json_entry_that_is_no_whole_number_is_quarantined(tmp_path: Path, content: str) -> None:
    message = error_of(tmp_path, {"json": content.encode()}, label="json.label")
    assert message == f"label field 'json.label' holds {content!r}, expected whole numbers"


def test_picture_that_cannot_be_decoded_is_quarantined(tmp_path: Path) -> None:
    assert error_of(tmp_path, {"png": b"", "cls": b"1"}) == "image is empty (0 bytes)"


@given(bad=st.sets(st.integers(0, 7), max_size=7), number=st.integers(0, 9))
def test_row_of_a_bad_sample_is_a_copy_of_the_next_good_row(
    tmp_path_factory: pytest.TempPathFactory, bad: set[int], number: int
) -> None:
    samples = [{"png": picture(shade), "wav": rising_sound(), "cls": b"1"} for shade in range(8)]
    damaged = [{**sample, "png": b"?"} if key in bad else sample for key, sample in enumerate(samples)]
    plan = training_plan(8, unit_size=8)
    whole = maker(tmp_path_factory.mktemp("whole"), samples, "image audio", plan).make(number)
    unit = maker(tmp_path_factory.mktemp("damaged"), damaged, "image audio", plan).make(number)
    order = plan.unit(number)
    taken = [next(r % 8 for r in range(row, row + 8) if order[r % 8] not in bad) for row in range(8)]
    assert [int(key.rpartition("/")[2]) for key in unit["keys"]] == [order[row] for row in taken]
    for name in ("image", "image_present", "audio", "audio_present", "label", "valid"):
        assert np.array_equal(unit[name], whole[name][taken]), name
    assert [key for _, key, _ in unit["quarantined"]] == [str(n) for n in order if n in bad]


def test_bad_evaluation_sample_is_not_valid_and_leaves_its_row_empty(tmp_path: Path) -> None:
    good = {"png": picture(9), "cls": b"1"}
    unit = maker(tmp_path, [good, {"png": b"?", "cls": b"1"}, good], "image").make(0)
    assert unit["valid"].tolist() == unit["image_present"].tolist() == [True, False, True]
    assert unit["label"].tolist() == [1, 0, 1]
    assert not unit["image"][1].any()
    assert [key for _, key, _ in unit["quarantined"]] == ["1"]


def test_training_unit_without_a_good_sample_names_the_most_common_reason(tmp_path: Path) -> None:
    samples = [{"png": b"", "cls": b"1"}, {"cls": b"7"}, {"cls": b"7"}]
    with pytest.raises(SampleError) as caught:
        maker(tmp_path, samples, "image", training_plan(3, unit_size=3)).make(0)
    assert re.fullmatch(
        rf"source 'clips': all 3 samples of unit 0 are bad; 2 of them, as sample '[12]' of shard {tmp_path}/x.tar: "
        "label 7 is out of range 0 .. 2; correct the sample or the source's num_classes",
        str(caught.value),
    )


@pytest.mark.parametrize("wrong", [np.zeros((5, 6, 1), np.uint8), np.zeros((4, 6, 1), np.float32)])
def test_array_of_another_shape_or_type_is_a_bad_sample(tmp_path: Path, wrong: np.ndarray) -> None:
    made = maker(tmp_path, [{"png": picture(9), "cls": b"1"}], "image")
    [(_, _, reason)] = replace(made, decode=lambda *_: {"image": wrong}).make(0)["quarantined"]
    assert reason == f"image was decoded to {wrong.dtype} {wrong.shape}, expected uint8 (4, 6, 1)"


def test_reason_is_one_short_printable_line(tmp_path: Path) -> None:
    reason = error_of(tmp_path, {"cls": b"9" * 4000})
    assert len(reason) <= 240
    assert error_of(tmp_path, {"cls": b"1\x1b[0m"}).isprintable()


def test_modality_dropout_never_leaves_a_sample_empty(tmp_path: Path) -> None:
    samples = [{"png": picture(9), "wav": rising_sound(), "cls": b"1"}] * 3 + [
        {"wav": rising_sound(), "cls": b"1"}
    ]
    plan = training_plan(4, unit_size=4)
    dropout = {"image": 0.5, "audio": 0.9}
    make = maker(tmp_path, samples, "image audio", plan, modality_dropout=dropout).make
    units = [make(number) for number in range(100)]
    image = np.concatenate([unit["image_present"] for unit in units])
    audio = np.concatenate([unit["audio_present"] for unit in units])
    assert (image | audio).all()
    # Three in four samples have both. With probability 0.5 * 0.9 both would be dropped, and then both are kept.
    assert image.mean() == pytest.approx(0.75 * (0.5 + 0.45), abs=0.05)
    assert audio.mean() == pytest.approx(0.75 * (0.1 + 0.45) + 0.25, abs=0.05)
    for unit in units:
        assert not unit["image"][~unit["image_present"]].any()
        assert not unit["audio"][~unit["audio_present"]].any()
    assert same(make(7), units[7])


def test_evaluation_drops_no_modality(tmp_path: Path) -> None:
    samples = [{"png": picture(9), "wav": rising_sound(), "cls": b"1"}] * 8
    unit = maker(tmp_path, samples, "image audio", modality_dropout={"image": 0.99}).make(0)
    assert unit["image_present"].all()


def test_unlabelled_maker_reads_no_labels(tmp_path: Path) -> None:
    make = maker(tmp_path, [{"png": picture(9)}, {"png": picture(9), "cls": b"999"}], "image")
    assert not make.make(0)["valid"].any()
    unit = replace(make, labelled=False).make(0)
    assert unit["valid"].all()
    assert unit["image_present"].all()
    assert not unit["label"].any()


def test_views_of_an_evaluation_are_windows_in_time(tmp_path: Path) -> None:
    plan = EvaluationPlan(samples=1, unit_size=1, lanes=1, views=3)
    make = maker(tmp_path, [{"wav": rising_sound(), "cls": b"1"}], "audio", plan).make
    first, centre, last = (int(make(number)["audio"][0, 0]) for number in range(3))
    assert (first, centre, last) == pytest.approx((0, (LENGTH - 800) / 2, LENGTH - 800), abs=2)
