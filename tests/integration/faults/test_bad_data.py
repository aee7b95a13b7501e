"""Training on shards with bad samples: each costs itself only, and is recorded once in the quarantine."""

import json
import os
import signal
import sys
import tarfile
import time
from dataclasses import replace
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import mlflow
import pytest
import small_run
from ray import cloudpickle
from rich.console import Console

from perceiver_dist.training.driver import run_training
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode.sample import Arrays, decode_sample
from pipelines.limits import Limits
from pipelines.shards.sample_reader import RawSample
from pipelines.units.unit_maker import UnitMaker

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("ray_cluster")]
# Ray's workers cannot import this file, so its functions are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # Ray does not annotate it


def damage(shard: Path, name: str, content: bytes) -> None:
    """Replace the content of one member of a shard."""
    with tarfile.open(shard) as archive:
        files = [(member, archive.extractfile(member)) for member in archive if member.isfile()]
        members = [(member, file.read()) for member, file in files if file is not None]
    with tarfile.open(shard, "w") as archive:
        for member, old in members:
            new = content if member.name == name else old
            member.size = len(new)
            archive.addfile(member, BytesIO(new))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    small_run.write_data(tmp_path / "data", train=200, evaluation=21)
    return tmp_path / "data"


def quarantined(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's quarantine.jsonl."""
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_bad_samples_are_recorded_once_and_the_run_completes(data: Path, tmp_path: Path) -> None:
    damage(data / "squares" / "train-000000.tar", "0007.png", b"no image")
    damage(data / "squares" / "eval-000000.tar", "0003.cls", b"cat")
    screen = StringIO()
    result = run_training(small_run.small_config(data, tmp_path, "bad", steps=20), Console(file=screen))
    assert (result["exit"], result["quarantined"]) == ("completed", 2)
    assert (result["metrics"]["squares/samples"], result["metrics"]["tones/samples"]) == (20, 21)
    found = quarantined(tmp_path / "bad")
    assert [
        (entry["source"], Path(entry["shard"]).name, entry["key"], entry["reason"]) for entry in found
    ] == [
        ("squares", "eval-000000.tar", "0003", "label field 'cls' holds 'cat', expected whole numbers"),
        (
            "squares",
            "train-000000.tar",
            "0007",
            "image is none of JPEG, PNG, WEBP, AVIF, TIFF, GIF, BMP, or its header is damaged",
        ),
    ]
    shown = " ".join(screen.getvalue().split())
    assert "1 sample could not be used: source 'squares': sample '0007' of shard" in shown
    assert "quarantined 2 samples, see" in shown
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    values = client.get_metric_history(result["mlflow_run_id"], "data/quarantined")
    assert (len(values), values[-1].value) == (20, 1)


def fatal(sample: RawSample, inputs: Any, randomness: SampleRandomness, limits: Limits) -> Arrays:
    """Decode, but crash at squares with one key and hang at one held-out tone."""
    if (sample.key, "png" in sample.fields) == ("0007", True):
        os.kill(os.getpid(), signal.SIGSEGV)
    if (sample.key, "eval" in sample.shard, "wav" in sample.fields) == ("0003", True, True):
        time.sleep(3600)
    return decode_sample(sample, inputs, randomness, limits)


def test_a_decoder_that_crashes_or_hangs_costs_its_sample_only(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perceiver_dist.training.datasets.UnitMaker", partial(UnitMaker, decode=fatal))
    config = small_run.small_config(data, tmp_path, "fatal", steps=20, max_failures=0)
    config = replace(config, data=replace(config.data, limits=Limits(decode_seconds=5)))
    screen = StringIO()
    result = run_training(config, Console(file=screen))
    assert (result["exit"], result["restarts"]) == ("completed", 0)
    reasons = {(entry["source"], entry["key"]): entry["reason"] for entry in quarantined(tmp_path / "fatal")}
    assert reasons.pop(("tones", "0003")) == "decoding took more than 5 s"
    assert set(reasons) <= {("squares", "0007")}  # one in the training shards, one in the held-out shards
    assert set(reasons.values()) == {"the decoder ended with signal SIGSEGV"}
    assert "died" not in screen.getvalue()


@pytest.mark.long
def test_a_resumed_run_keeps_its_quarantine(data: Path, tmp_path: Path) -> None:
    damage(data / "squares" / "train-000000.tar", "0007.png", b"no image")
    config = small_run.small_config(data, tmp_path, "resumed", steps=40)
    first = run_training(replace(config, train=replace(config.train, stop_at=20)), Console(file=StringIO()))
    before = quarantined(tmp_path / "resumed")
    second = run_training(config, Console(file=StringIO()))
    assert first["quarantined"] == second["quarantined"] == 1
    assert quarantined(tmp_path / "resumed") == before
