"""Tests of lint and info on real shards: every bad sample is found, and the content is summarized."""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from faulty_shards import EVERYTHING, FAULTS, GOOD, clip, picture, sound, write_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_files import SQUARE, off
from PIL import Image
from ray import cloudpickle
from tar_files import index_of, write_tar

from perceiver_dist.errors import UserError
from perceiver_dist.modalities import ModalityInput
from perceiver_dist.training.tracker.quarantine import Quarantine
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode.sample import Arrays, decode_sample
from pipelines.errors import ShardError
from pipelines.inspection.headers import measure
from pipelines.inspection.lint import LintReport, group_by_reason, lint
from pipelines.inspection.sample_check import LabelRules, find_bad_samples
from pipelines.inspection.shard_access import draw_samples, find_shards
from pipelines.inspection.summary import Spread, Summary, summarise
from pipelines.limits import Limits
from pipelines.shards.sample_reader import RawSample, read_samples
from pipelines.units.unit_maker import BadSample

RULES = LabelRules(num_classes=3)
Job = Callable[[Sequence[str]], int]
# Ray workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # Ray does not annotate it


def bad_samples(shard: str, rules: LabelRules = RULES) -> list[BadSample]:
    index = index_of(shard)
    samples = read_samples(index, range(index.samples), rules.wanted_fields)
    return find_bad_samples(samples, rules, decode_sample)


def summary_of(*shards: str, rules: LabelRules = RULES, labels: int = 100, headers: int = 100) -> Summary:
    return summarise(index_of(*shards), rules, labels, headers)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    """Return the main function of the job."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])
    main: Job = importlib.import_module("jobs.inspect_data").main
    return main


def test_every_fault_is_found_with_its_reason_and_nothing_else(tmp_path: Path) -> None:
    shard = write_samples(tmp_path / "x.tar", EVERYTHING)
    found = bad_samples(shard)
    assert [(bad.shard, bad.key) for bad in found] == [
        (shard, str(len(GOOD) + number)) for number in range(len(FAULTS))
    ]
    for bad, (_, reason) in zip(found, FAULTS, strict=True):
        assert bad.reason.startswith(reason)


def test_a_problem_of_the_tar_makes_a_sample_bad(tmp_path: Path) -> None:
    [bad] = bad_samples(
        write_tar(tmp_path / "x.tar", [("a.cls", b"1"), ("a.png", picture()), ("a.PNG", b"")])
    )
    assert bad.reason == "has the field 'png' twice; keys must be unique within a shard"


@pytest.mark.parametrize(
    ("label", "rules", "reason"),
    [
        (b"7", LabelRules(), None),
        (b"-1", LabelRules(), "label -1 is below 0; classes are numbered from 0"),
        (b"0,2", RULES, "has 2 labels [0, 2], a softmax source needs exactly one"),
        (b"0,2", LabelRules(task="multilabel", num_classes=3), None),
        (b"", LabelRules(task="multilabel"), None),
    ],
)
def test_labels_are_checked_by_task_and_number_of_classes(
    tmp_path: Path, label: bytes, rules: LabelRules, reason: str | None
) -> None:
    shard = write_samples(tmp_path / "x.tar", [{"png": picture(), "cls": label}])
    assert [bad.reason for bad in bad_samples(shard, rules)] == ([reason] if reason else [])


@settings(max_examples=15)
@given(chosen=st.lists(st.integers(0, len(EVERYTHING) - 1), min_size=1, max_size=12))
def test_every_bad_sample_is_in_exactly_one_group(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[int]
) -> None:
    shard = write_samples(
        tmp_path_factory.mktemp("shards") / "x.tar", [EVERYTHING[number] for number in chosen]
    )
    groups = group_by_reason(bad_samples(shard))
    keys = [sample.key for group in groups for sample in group.samples]
    assert sorted(keys) == sorted(str(place) for place, number in enumerate(chosen) if number >= len(GOOD))


def test_reasons_that_differ_in_numbers_and_quotes_are_one_group() -> None:
    reasons = ["label 7 is out of range", "holds 'cat'", "label 12 is out of range", "holds 'cat'"]
    groups = group_by_reason([BadSample("x.tar", str(key), reason) for key, reason in enumerate(reasons)])
    assert [(group.reason, [sample.key for sample in group.samples]) for group in groups] == [
        ("label # is out of range", ["0", "2"]),
        ("holds 'cat'", ["1", "3"]),
    ]


def fatal(
    sample: RawSample, inputs: Mapping[str, ModalityInput], randomness: SampleRandomness, limits: Limits
) -> Arrays:
    """Crash on the sample with the key 3."""
    if sample.key == "3":
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode_sample(sample, inputs, randomness, limits)


@pytest.mark.usefixtures("ray_cluster")
def test_lint_reports_bad_shards_and_survives_a_decoder_that_crashes(tmp_path: Path) -> None:
    shards = [str(tmp_path / f"{number}.tar") for number in range(3)]
    Path(shards[0]).write_bytes(b"?" * 2000)
    for shard in shards[1:]:
        write_samples(Path(shard), GOOD * 3)
    lines: list[str] = []
    phases: list[str] = []
    report = lint(shards, str(tmp_path / "index"), RULES, lines.append, phases.append, fatal)
    assert report == LintReport(
        shards=3,
        samples=24,
        bad_shards=[
            BadSample(
                shards[0],
                "",
                "is truncated or not a tar (invalid header) at 2000 bytes; write it again or leave it out",
            )
        ],
        bad_samples=[BadSample(shard, "3", "the decoder ended with signal SIGSEGV") for shard in shards[1:]],
    )
    assert phases == ["3 of 3 shards indexed, 1 bad"]
    assert lines[-1] == "24 of 24 samples checked, 2 bad"


@pytest.mark.usefixtures("ray_cluster")
def test_lint_exits_with_1_and_writes_bad_samples_as_a_quarantine(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_samples(tmp_path / "x.tar", EVERYTHING)
    out = tmp_path / "bad.jsonl"
    options = ["--shards", shard, "--num_classes", "3", "--storage_path", str(tmp_path)]
    assert job(["lint", *options, "--out", str(out)]) == 1
    entries = [json.loads(line) for line in out.read_text().splitlines()]
    assert [entry["key"] for entry in entries] == [str(len(GOOD) + number) for number in range(len(FAULTS))]
    assert Quarantine(str(out)).text() == out.read_text()
    printed = capsys.readouterr()
    assert f"{shard} 4" in printed.out
    assert "samples: 10, of which 4 are good and 6 bad" in printed.out
    # Without a terminal, the last state of both phases is in the log.
    assert "1 of 1 shards indexed, 0 bad\n" in printed.err
    assert "10 of 10 samples checked, 6 bad\n" in printed.err


@pytest.mark.usefixtures("ray_cluster")
def test_lint_exits_with_0_if_all_samples_are_good(tmp_path: Path, job: Job) -> None:
    shard = write_samples(tmp_path / "x.tar", GOOD)
    assert job(["lint", "--shards", shard, "--storage_path", str(tmp_path)]) == 0


def test_a_summary_counts_samples_fields_modalities_and_labels(tmp_path: Path) -> None:
    first = write_samples(tmp_path / "a.tar", EVERYTHING)
    second = write_samples(tmp_path / "b.tar", GOOD[:2])
    summary = summary_of(first, second)
    assert (summary.shards, summary.samples, summary.duplicated_keys) == (2, 12, 2)
    assert summary.bytes == sum(Path(shard).stat().st_size for shard in (first, second))
    assert summary.fields == {
        "cls": 11, "png": 6, "jpg": 2, "wav": 3, "mp4": 1, "off": 1, "txt": 1,
    }  # fmt: skip
    assert summary.modalities == {"image": 8, "audio": 3, "video": 1, "points": 1}
    assert (summary.without_media, summary.refused, summary.unreadable) == (1, 0, 1)
    assert summary.labels.classes == {0: 5, 1: 2, 2: 2}
    assert (summary.labels.samples, summary.labels.unreadable) == (12, 3)


def test_a_summary_has_the_values_from_headers(tmp_path: Path) -> None:
    summary = summary_of(write_samples(tmp_path / "x.tar", [*GOOD, {"png": b"?"}]))
    assert summary.measures == {
        "image": {"width": Spread(2, 12, 26, 40), "height": Spread(2, 8, 14, 20)},
        "audio": {
            "seconds": Spread(1, 3, 3, 3),
            "sound samples per second": Spread(1, 8000, 8000, 8000),
            "channels": Spread(1, 1, 1, 1),
        },
        "video": {
            "width": Spread(1, 32, 32, 32),
            "height": Spread(1, 32, 32, 32),
            "seconds": Spread(1, 1.125, 1.125, 1.125),
            "frames per second": Spread(1, 16, 16, 16),
            "sound samples per second": Spread(1, 8000, 8000, 8000),
        },
        "points": {"vertices": Spread(1, 4, 4, 4), "triangles": Spread(1, 2, 2, 2)},
    }
    assert (summary.headers, summary.unreadable) == (5, 1)


def test_known_classes_without_a_sample_are_counted(tmp_path: Path) -> None:
    shard = write_samples(tmp_path / "x.tar", [{"cls": b"2"}, {"cls": b""}, {"cls": b"0,2,2"}])
    labels = summary_of(shard, rules=LabelRules(task="multilabel", num_classes=4)).labels
    assert (labels.classes, labels.without_class) == ({0: 1, 1: 0, 2: 2, 3: 0}, 1)
    assert summary_of(shard, rules=LabelRules(task="multilabel")).labels.classes == {0: 1, 2: 2}


def test_info_counts_the_files_that_belong_to_no_sample(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_tar(tmp_path / "x.tar", [("README.md", b"about"), ("0.png", picture()), ("0.cls", b"1")])
    options = ["info", "--shards", shard, "--storage_path", str(tmp_path)]
    assert job([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["strays"]) == (1, 1)
    assert job(options) == 0
    assert "files of no sample" in capsys.readouterr().out


def test_a_random_subset_of_many_samples_is_read(tmp_path: Path) -> None:
    index = index_of(write_samples(tmp_path / "x.tar", [{"cls": b"1"}] * 50))
    drawn = draw_samples(index, 20, seed=0)
    assert len(set(drawn)) == 20
    assert drawn != draw_samples(index, 20, seed=1)
    assert sorted(draw_samples(index, 60, seed=0)) == list(range(50))
    summary = summarise(index, RULES, max_labels=30, max_headers=20)
    assert (summary.labels.samples, summary.labels.classes[1], summary.headers) == (30, 30, 20)


def test_a_rotated_image_is_measured_upright() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    target = BytesIO()
    Image.new("RGB", (30, 10)).save(target, "JPEG", exif=exif)
    assert measure("jpg", target.getvalue()) == {"width": 10, "height": 30}


@pytest.mark.parametrize(
    ("field", "data"), [("png", picture()), ("wav", sound()), ("mp4", clip()), ("off", off(*SQUARE))]
)
def test_info_prints_the_same_as_tables_and_as_json(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str], field: str, data: bytes
) -> None:
    shard = write_samples(tmp_path / "x.tar", [{field: data, "cls": b"1"}] * 2)
    options = ["info", "--shards", shard, "--storage_path", str(tmp_path)]
    assert job([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["fields"], found["labels"]["classes"]) == (
        2,
        {field: 2, "cls": 2},
        {"1": 2},
    )
    assert job(options) == 0
    words = capsys.readouterr().out.split()
    assert [words[words.index(name) + 1] for name in ("shards", "samples", f".{field}")] == ["1", "2", "2"]


def test_demo_shards_are_found(tmp_path: Path) -> None:
    [shard] = find_shards("demo:fashion_mnist/eval-*.tar", str(tmp_path))
    assert Path(shard).is_file()
    with pytest.raises(UserError, match="unknown demo 'cats'; choose fashion_mnist or sights_and_sounds"):
        find_shards("demo:cats/*.tar", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["lint", "--shards", "none-*.tar"], "no file matches"),
        (["lint", "--shards", "x.tar", "--num_classes", "1"], "--num_classes is 1, must be at least 2"),
        (["info", "--shards", "x.tar", "--label", "json"], "--label is 'json'; name a field"),
        (["info", "--shards", "x.tar", "--samples", "0"], "--samples is 0, must be at least 1"),
        (["info", "--shards", "x.tar"], "no such file"),
        (
            ["preview", "--shards", "x.tar", "--out", "/proc/x/page.html"],
            "--out is '/proc/x', which cannot be",
        ),
        (["look"], "look"),
    ],
)
def test_an_invalid_option_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Job, options: list[str], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=error) as caught:
        job(options)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("ray_cluster")
def test_a_shard_removed_during_lint_is_named(tmp_path: Path) -> None:
    shard = write_samples(tmp_path / "x.tar", GOOD)

    def remove(line: str) -> None:
        if line.startswith("1 of 1 shards indexed"):
            Path(shard).unlink()

    with pytest.raises(ShardError, match=f"shard {shard}: is missing but was there when it was indexed"):
        lint([shard], str(tmp_path / "index"), RULES, remove, remove)


def test_tables_show_the_most_and_least_frequent_of_many_classes_and_json_shows_all(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [{"cls": str(label).encode()} for label in range(30) for _ in range(label + 1)]
    shard = write_samples(tmp_path / "x.tar", samples)
    options = ["info", "--shards", shard, "--storage_path", str(tmp_path)]
    assert job(options) == 0
    _, _, histogram = capsys.readouterr().out.partition("share")
    shown = [line.split()[0] for line in histogram.splitlines()[1:] if line.strip()]
    assert shown == [*map(str, range(29, 19, -1)), "...", *map(str, range(9, -1, -1))]
    assert job([*options, "--json"]) == 0
    classes = json.loads(capsys.readouterr().out)["labels"]["classes"]
    assert classes == {str(label): label + 1 for label in range(30)}


def test_info_shows_class_names_from_a_file_or_from_beside_the_shards(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_samples(tmp_path / "x.tar", [{"cls": b"1"}])
    options = ["info", "--shards", shard, "--storage_path", str(tmp_path)]
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    (tmp_path / "classes.json").write_text('["Katze", "Hund", "[bold]Maus"]')
    assert job([*options, "--classes", str(tmp_path / "names.json")]) == 0
    assert "1 dog" in capsys.readouterr().out
    assert job(options) == 0
    assert "2 [bold]Maus" in capsys.readouterr().out
    assert job([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["class_names"] == ["Katze", "Hund", "[bold]Maus"]
    assert found["labels"]["classes"] == {"0": 0, "1": 1, "2": 0}


def test_a_file_beside_the_shards_that_has_no_class_names_is_skipped_with_a_remark(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_samples(tmp_path / "x.tar", [{"cls": b"1"}])
    options = ["info", "--shards", shard, "--storage_path", str(tmp_path), "--json"]
    for text, reason in (
        ('{"cat": 0}', "expected a list of two names or more"),
        ('["a", "b"]', "has 2 names"),
    ):
        (tmp_path / "classes.json").write_text(text)
        assert job([*options, "--num_classes", "3"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["class_names"] == []
        assert printed.err.startswith("class names are not shown: ")
        assert reason in printed.err
