"""The configuration tree: what it refuses, and what follows from it."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_dist.config.run_config import OptimConfig, RunConfig, StorageConfig, TrainConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ImageInput, PointCloudInput, VideoInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import DataConfig, SourceConfig

DIGITS = SourceConfig("digits", "digits.tar", ["image"], num_classes=10)
BIRDS = SourceConfig("birds", "birds.tar", ["audio", "image"], num_classes=3, weight=2.5)
MODEL = ModelConfig(image=ImageInput(), audio=AudioInput())


def line_of(build: Callable[..., Any], **options: Any) -> str:
    """The error that building a configuration ends in."""
    with pytest.raises(UserError) as caught:
        build(**options)
    return str(caught.value)


def test_heads_and_weights_are_those_of_the_sources():
    config = RunConfig(MODEL, [DIGITS, BIRDS])
    assert config.heads == {"digits": 10, "birds": 3}
    assert config.weights == {"digits": 1.0, "birds": 2.5}


def test_a_configuration_is_not_changed_once_it_is_checked():
    with pytest.raises(FrozenInstanceError):
        RunConfig(MODEL, [DIGITS]).train.lanes = 3  # type: ignore[misc]  # that it fails is the point


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"learning_rate": 0.0}, "optim.learning_rate is 0.0, must be above 0"),
        ({"learning_rate": float("nan")}, "optim.learning_rate is nan, must be above 0"),
        ({"warmup_steps": -1}, "optim.warmup_steps is -1, must not be negative"),
        ({"weight_decay": -0.1}, "optim.weight_decay is -0.1, must not be negative"),
        ({"clip_norm": -1.0}, "optim.clip_norm is -1.0, must not be negative"),
        ({"final_fraction": 2.0}, "optim.final_fraction is 2.0, must be between 0 and 1"),
        ({"beta1": 1.5}, "optim.beta1 is 1.5, must be between 0 and 1"),
        ({"beta2": -0.5}, "optim.beta2 is -0.5, must be between 0 and 1"),
    ],
)
def test_optim_names_what_is_out_of_range(options: dict[str, float], line: str):
    assert line_of(OptimConfig, **options) == line


@pytest.mark.parametrize(
    "name",
    ["steps", "micro_batch", "lanes", "num_workers", "log_every", "checkpoint_every", "keep_checkpoints"],
)
def test_train_names_what_must_be_at_least_1(name: str):
    assert line_of(TrainConfig, **{name: 0}) == f"train.{name} is 0, must be at least 1"


@pytest.mark.parametrize("name", ["eval_every", "max_failures", "seed", "cpus_per_worker"])
def test_train_names_what_must_not_be_negative(name: str):
    assert line_of(TrainConfig, **{name: -1}) == f"train.{name} is -1, must not be negative"


@settings(deadline=None)
@given(lanes=st.integers(1, 64), num_workers=st.integers(1, 64))
def test_workers_must_divide_lanes_and_those_offered_do(lanes: int, num_workers: int):
    divisors = [workers for workers in range(1, 65) if lanes % workers == 0]
    if num_workers in divisors:
        assert TrainConfig(lanes=lanes, num_workers=num_workers).lanes == lanes
    else:
        line = line_of(TrainConfig, lanes=lanes, num_workers=num_workers)
        assert line == (
            f"train.num_workers is {num_workers}, which does not divide train.lanes {lanes}; "
            f"choose one of {divisors} workers or other lanes"
        )


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a:b", "a\\b"])
def test_a_run_s_name_is_fit_for_a_folder(name: str):
    line = f"storage.run_name is '{name}'; use a name without slashes, colons and spaces"
    assert line_of(StorageConfig, run_name=name) == line
    assert StorageConfig(run_name="first-run_2").run_name == "first-run_2"


@pytest.mark.parametrize("name", ["chunk_size", "units_per_task", "tasks", "prefetch_units"])
def test_data_names_what_must_be_at_least_1(name: str):
    assert line_of(DataConfig, **{name: 0}) == f"data.{name} is 0, must be at least 1"


@pytest.mark.parametrize(
    ("sources", "line"),
    [
        ([], "sources is empty: name at least one source to train on"),
        ([DIGITS, DIGITS], "sources: the name 'digits' is used 2 times; names must differ"),
        ([replace(DIGITS, weight=0.0)], "source 'digits': weight is 0.0, must be above 0 and finite"),
        ([replace(DIGITS, weight=math.inf)], "source 'digits': weight is inf, must be above 0 and finite"),
        (
            [replace(BIRDS, modalities=["image", "video"])],
            "source 'birds': has modality video, but model.video is null; set model.video.* to its sizes",
        ),
    ],
)
def test_sources_must_fit_together_and_the_model(sources: list[SourceConfig], line: str):
    assert line_of(RunConfig, model=MODEL, sources=sources) == line


@pytest.mark.parametrize(
    ("build", "options", "line"),
    [
        (ImageInput, {"patch": 3}, "image: patch 3 must divide height 28 and width 28"),
        (ImageInput, {"channels": 2}, "image: channels is 2, must be 1 (grey) or 3 (RGB)"),
        (PointCloudInput, {"points": 0}, "points: points 0 and bands 8 must be positive"),
        (
            PointCloudInput,
            {"max_frequency": 1.5},
            "points: max_frequency is 1.5, must be at least 2, twice the lowest frequency",
        ),
        (
            PointCloudInput,
            {"scale_jitter": 1.0},
            "points: scale_jitter is 1.0, must be at least 0 and below 1",
        ),
        (AudioInput, {"segment": 100}, "audio: segment 100 must divide samples 8192"),
        (
            VideoInput,
            {"patch": (3, 4, 4)},
            "video: patch (3, 4, 4) must divide (frames, height, width) (8, 32, 32)",
        ),
        (
            ImageInput,
            {"bands": 0},
            "image: height 28, width 28, patch 1 and bands 0 must be positive",
        ),
    ],
)
def test_an_input_s_sizes_must_fit_together(build: type, options: dict[str, Any], line: str):
    assert line_of(build, **options) == line
