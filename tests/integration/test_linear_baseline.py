"""The linear baseline on data that it can separate: features of every modality, evaluation on held-out samples."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_run

from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput, VideoInput
from perceiver_dist.preflight.linear_baseline import linear_baselines, unit_features

PROJECT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    small_run.write_data(tmp_path / "data")
    return small_run.small_config(tmp_path / "data", tmp_path / "runs", "linear")


def test_squares_and_tones_are_classified(config: RunConfig) -> None:
    read: list[str] = []
    fitted: list[tuple[str, int, int]] = []
    squares, tones = linear_baselines(config, read.append, lambda *fit: fitted.append(fit))
    assert read == ["squares", "tones"]
    assert fitted == [(source, number, 36) for source in read for number in range(1, 37)]
    assert (squares.source, squares.trained, squares.held_out) == ("squares", 90, 21)
    assert (squares.accuracy, tones.accuracy) == (1.0, 1.0)
    assert squares.features == 64
    assert squares.majority == pytest.approx(6 / 21)


def test_sources_without_held_out_shards_are_rejected(config: RunConfig) -> None:
    without = [replace(source, eval_shards="") for source in config.sources]
    with pytest.raises(UserError, match="none has one label per sample and eval_shards"):
        linear_baselines(replace(config, sources=without), lambda _: None, lambda *_: None)


@pytest.mark.parametrize(
    ("modality", "spec"),
    [
        ("image", ImageInput(height=40, width=20, channels=3)),
        ("audio", AudioInput(sample_rate=8000, samples=1000, segment=100)),
        ("video", VideoInput()),
        ("points", PointCloudInput(points=50)),
    ],
)
def test_features_are_finite_and_differ_between_samples(
    modality: str, spec: ImageInput | AudioInput | VideoInput | PointCloudInput
) -> None:
    samples = [
        RANDOM.integers(0, 200, spec.array_shape) * np.ones((), spec.array_dtype) * number
        for number in range(3)
    ]
    features = unit_features({modality: np.array(samples, spec.array_dtype)}, {modality: spec})
    assert features.shape[0] == 3
    assert np.isfinite(features).all()
    assert np.abs(features[1] - features[2]).max() > 0.01


def test_the_job_prints_a_table(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    job = PROJECT / "jobs" / "linear_baseline.py"
    command = [sys.executable, str(job), "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    progress = [line for line in lines if ": fitting " in line]
    assert progress[-1] == "tones: fitting 36 of 36", (
        "35 fits of the cross-validation, and one with all samples"
    )
    table = [line.split()[0] for line in lines if line not in progress]
    assert table == ["reading", "reading", "source", "squares", "tones"]
