"""Tests of the configuration tree: range checks, cross-checks and derived values."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.run_config import RunConfig, StorageConfig, TrainConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput, VideoInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import DataConfig, SourceConfig

DIGITS = SourceConfig("digits", "digits.tar", ["image"], num_classes=10)
BIRDS = SourceConfig("birds", "birds.tar", ["audio", "image"], num_classes=3, weight=2.5)
MODEL = ModelConfig(image=ImageInput(), audio=AudioInput())


def error_of(build: Callable[..., Any], **options: Any) -> str:
    """Build a configuration that is not valid, and return the error message."""
    with pytest.raises(UserError) as caught:
        build(**options)
    return str(caught.value)


def test_heads_and_weights_come_from_the_sources() -> None:
    config = RunConfig(MODEL, [DIGITS, BIRDS])
    assert config.heads == {"digits": 10, "birds": 3}
    assert config.weights == {"digits": 1.0, "birds": 2.5}


def test_a_configuration_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig(MODEL, [DIGITS]).train.lanes = 3  # type: ignore[misc]  # the test needs it


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"learning_rate": 0.0}, "optim.learning_rate is 0.0, must be above 0"),
        ({"learning_rate": float("nan")}, "optim.learning_rate is nan, must be above 0"),
        ({"warmup_steps": -1}, "optim.warmup_steps is -1, must be at least 0"),
        ({"weight_decay": -0.1}, "optim.weight_decay is -0.1, must be at least 0"),
        ({"clip_norm": -1.0}, "optim.clip_norm is -1.0, must be at least 0"),
        ({"final_fraction": 2.0}, "optim.final_fraction is 2.0, must be between 0 and 1"),
        ({"beta1": 1.5}, "optim.beta1 is 1.5, must be between 0 and 1"),
        ({"eps": 0.0}, "optim.eps is 0.0, must be above 0"),
        ({"learning_rate_batch": 0}, "optim.learning_rate_batch is 0, must be at least 1"),
        ({"label_smoothing": 1.0}, "optim.label_smoothing is 1.0, must be at least 0 and below 1"),
        ({"beta2": -0.5}, "optim.beta2 is -0.5, must be between 0 and 1"),
    ],
)
def test_an_optimizer_option_out_of_range_is_named(options: dict[str, float], line: str) -> None:
    assert error_of(OptimConfig, **options) == line


@pytest.mark.parametrize(
    "name",
    ["steps", "micro_batch", "lanes", "num_workers", "log_every", "checkpoint_every", "keep_checkpoints"],
)
def test_a_training_option_below_1_is_named(name: str) -> None:
    assert error_of(TrainConfig, **{name: 0}) == f"train.{name} is 0, must be at least 1"


@pytest.mark.parametrize("name", ["eval_every", "max_failures", "seed", "cpus_per_worker"])
def test_a_negative_training_option_is_named(name: str) -> None:
    assert error_of(TrainConfig, **{name: -1}) == f"train.{name} is -1, must be at least 0"


@settings(deadline=None)
@given(lanes=st.integers(1, 64), num_workers=st.integers(1, 64))
def test_the_number_of_workers_must_divide_the_lanes(lanes: int, num_workers: int) -> None:
    divisors = [workers for workers in range(1, 65) if lanes % workers == 0]
    if num_workers in divisors:
        assert TrainConfig(lanes=lanes, num_workers=num_workers).lanes == lanes
    else:
        error = error_of(TrainConfig, lanes=lanes, num_workers=num_workers)
        assert error == (
            f"train.num_workers is {num_workers}, which does not divide train.lanes {lanes}; "
            f"use one of {divisors} workers, or change train.lanes"
        )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"best_metric": "digits/accuracy"},
            "train.best_metric is digits/accuracy, but train.eval_every is 0; set the steps between evaluations",
        ),
        (
            {"patience": 3},
            "train.patience is 3, but train.best_metric is null; name the metric that has to improve",
        ),
        (
            {"patience": 0, "best_metric": "a/loss", "eval_every": 5},
            "train.patience is 0, must be at least 1",
        ),
    ],
)
def test_the_best_checkpoint_needs_evaluations(options: dict[str, Any], line: str) -> None:
    assert error_of(TrainConfig, **options) == line


@pytest.mark.parametrize("metric", ["accuracy", "digits/f1", "birds/accuracy", "digits/accuracy_image_only"])
def test_a_best_metric_that_no_evaluation_has_is_named_with_the_known_ones(metric: str) -> None:
    held_out = replace(DIGITS, eval_shards="x.tar")
    train = TrainConfig(eval_every=5, best_metric=metric)
    known = "digits/accuracy, digits/loss"
    assert error_of(RunConfig, model=MODEL, sources=[held_out, BIRDS], train=train) == (
        f"train.best_metric is '{metric}', must be one of {known}"
    )
    for each in known.split(", "):
        RunConfig(MODEL, [held_out], train=TrainConfig(eval_every=5, best_metric=each))


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a:b", "a\\b"])
def test_a_run_name_must_be_valid_as_a_folder_name(name: str) -> None:
    error = f"storage.run_name is '{name}'; use a name without slashes, colons and spaces"
    assert error_of(StorageConfig, run_name=name) == error
    assert StorageConfig(run_name="first-run_2").run_name == "first-run_2"


@pytest.mark.parametrize("name", ["chunk_size", "units_per_task", "tasks", "prefetch_units"])
def test_a_data_option_below_1_is_named(name: str) -> None:
    assert error_of(DataConfig, **{name: 0}) == f"data.{name} is 0, must be at least 1"


@pytest.mark.parametrize(
    ("sources", "line"),
    [
        ([], "sources is empty: name at least one source to train on"),
        ([DIGITS, DIGITS], "sources: the name 'digits' is used 2 times; use each name once"),
        ([replace(DIGITS, weight=0.0)], "source 'digits': weight is 0.0, must be above 0 and below inf"),
        ([replace(DIGITS, weight=math.inf)], "source 'digits': weight is inf, must be above 0 and below inf"),
        (
            [replace(BIRDS, modalities=["image", "video"])],
            "source 'birds': has modality video, but model.video is null; set model.video.* to its sizes",
        ),
    ],
)
def test_sources_must_fit_each_other_and_the_model(sources: list[SourceConfig], line: str) -> None:
    assert error_of(RunConfig, model=MODEL, sources=sources) == line


@pytest.mark.parametrize(
    ("build", "options", "line"),
    [
        (ImageInput, {"patch": 3}, "model.image.patch is 3, must divide height 28 and width 28"),
        (ImageInput, {"channels": 2}, "model.image.channels is 2, must be 1 (grey) or 3 (RGB)"),
        (PointCloudInput, {"points": 0}, "model.points.points is 0, must be at least 1"),
        (
            PointCloudInput,
            {"max_frequency": 1.5},
            "model.points.max_frequency is 1.5, must be at least 2 and below inf",
        ),
        (
            PointCloudInput,
            {"scale_jitter": 1.0},
            "model.points.scale_jitter is 1.0, must be at least 0 and below 1",
        ),
        (AudioInput, {"segment": 100}, "model.audio.segment is 100, must divide samples 8192"),
        (AudioInput, {"mel_bands": 0}, "model.audio.mel_bands is 0, must be at least 1"),
        (
            AudioInput,
            {"mel_bands": 40, "segment": 1},
            "model.audio.segment is 1, must be even for a spectrogram (mel_bands 40)",
        ),
        (
            VideoInput,
            {"patch": (3, 4, 4)},
            "model.video.patch is (3, 4, 4), must divide (frames, height, width) (8, 32, 32)",
        ),
        (VideoInput, {"patch": (0, 4, 4)}, "model.video.patch is [0, 4, 4], every entry must be at least 1"),
        (ImageInput, {"bands": 0}, "model.image.bands is 0, must be at least 1"),
    ],
)
def test_the_sizes_of_an_input_must_fit_together(build: type, options: dict[str, Any], line: str) -> None:
    assert error_of(build, **options) == line
