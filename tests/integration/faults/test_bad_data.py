"""Training on shards with bad samples: each costs itself only, and is recorded once in the quarantine."""

import json
import os
import re
import signal
import sys
import tarfile
import time
from dataclasses import replace
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

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


class Run(NamedTuple):
    """A finished run: its folder, the content of result.json, and its output on one line."""

    folder: Path
    result: dict[str, Any]
    screen: str


@pytest.fixture
def data(tmp_path: Path) -> Path:
    small_run.write_data(tmp_path / "data", train=200, evaluation=21)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Run:  # noqa: ARG001
    """Train on a damaged image and a wrong label, with a decoder that crashes at two samples and hangs at one."""
    folder = tmp_path_factory.mktemp("bad")
    data = folder / "data"
    small_run.write_data(data, train=200, evaluation=21)
    damage(data / "squares" / "train-000000.tar", "0007.png", b"no image")
    damage(data / "squares" / "eval-000000.tar", "0003.cls", b"cat")
    config = small_run.small_config(data, folder, "bad", steps=20, max_failures=0)
    config = replace(config, data=replace(config.data, limits=Limits(decode_seconds=5)))
    screen = StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perceiver_dist.training.datasets.UnitMaker", partial(UnitMaker, decode=fatal))
        result = run_training(config, Console(file=screen))
    return Run(folder / "bad", result, " ".join(screen.getvalue().split()))


def fatal(sample: RawSample, inputs: Any, randomness: SampleRandomness, limits: Limits) -> Arrays:
    """Decode, but crash at squares with one key and hang at one held-out tone."""
    if (sample.key, "png" in sample.fields) == ("0009", True):
        os.kill(os.getpid(), signal.SIGSEGV)
    if (sample.key, "eval" in sample.shard, "wav" in sample.fields) == ("0003", True, True):
        time.sleep(3600)
    return decode_sample(sample, inputs, randomness, limits)


def quarantined(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's quarantine.jsonl."""
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_the_run_completes_and_counts_what_is_left(run: Run) -> None:
    assert (run.result["exit"], run.result["restarts"], run.result["quarantined"]) == ("completed", 0, 5)
    metrics = run.result["metrics"]
    assert (metrics["squares/samples"], metrics["tones/samples"]) == (19, 20)
    assert "died" not in run.screen


def test_bad_samples_are_recorded_once_with_their_reasons(run: Run) -> None:
    found = sorted(
        (entry["source"], Path(entry["shard"]).name, entry["key"], entry["reason"])
        for entry in quarantined(run.folder)
    )
    crash = "the decoder ended with signal SIGSEGV"
    damaged = "image is none of JPEG, PNG, WEBP, AVIF, TIFF, GIF, BMP, or its header is damaged"
    assert found == [
        ("squares", "eval-000000.tar", "0003", "label field 'cls' holds 'cat', expected whole numbers"),
        ("squares", "eval-000000.tar", "0009", crash),
        ("squares", "train-000000.tar", "0007", damaged),
        ("squares", "train-000000.tar", "0009", crash),
        ("tones", "eval-000000.tar", "0003", "decoding took more than 5 s"),
    ]


def test_bad_samples_are_shown_and_counted_in_mlflow(run: Run) -> None:
    assert re.search(
        r"\d samples? could not be used: source 'squares': sample '000[79]' of shard", run.screen
    )
    assert "quarantined 5 samples, see" in run.screen
    client = mlflow.MlflowClient(f"sqlite:///{run.folder.parent}/mlflow.db")
    values = client.get_metric_history(run.result["mlflow_run_id"], "data/quarantined")
    # The held-out samples are evaluated after the last step.
    assert (len(values), values[-1].value) == (20, 2)


@pytest.mark.long
def test_a_resumed_run_keeps_its_quarantine(data: Path, tmp_path: Path) -> None:
    damage(data / "squares" / "train-000000.tar", "0007.png", b"no image")
    config = small_run.small_config(data, tmp_path, "resumed", steps=40)
    first = run_training(replace(config, train=replace(config.train, stop_at=20)), Console(file=StringIO()))
    before = quarantined(tmp_path / "resumed")
    second = run_training(config, Console(file=StringIO()))
    assert first["quarantined"] == second["quarantined"] == 1
    assert quarantined(tmp_path / "resumed") == before
