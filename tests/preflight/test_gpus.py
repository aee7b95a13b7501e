"""Needs of a run on GPUs by name: the largest micro-batch, and durations from measured throughput only."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from perceiver_dist.benchmarks.model_peers import GPU_CONTENDERS, computed_flops
from perceiver_dist.benchmarks.model_settings import SETTINGS
from perceiver_dist.config.run_config import RunConfig, TrainConfig
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.preflight import gpus
from perceiver_dist.preflight.gpus import (
    GPU_MEMORY,
    MeasuredThroughput,
    durations,
    largest_micro_batches,
    measured_throughput,
)
from pipelines.shards.source import SourceConfig

IMAGENET = replace(SETTINGS["imagenet"], cross_attention="separable")
ROW = MeasuredThroughput(
    "NVIDIA H200", "imagenet", "separable", "bf16", 32, 82.5, 388.5, "b3af075", "2026-11-27"
)


def run(model: ModelConfig = IMAGENET, **train: Any) -> RunConfig:
    options: dict[str, Any] = {
        "steps": 3600,
        "micro_batch": 32,
        "lanes": 8,
        "num_workers": 4,
        "precision": "bf16",
    } | train
    return RunConfig(
        model, [SourceConfig("a", "none.tar", ["image"], num_classes=1000)], train=TrainConfig(**options)
    )


def test_a_measured_run_takes_its_samples_at_the_measured_rate() -> None:
    found = durations(run())["NVIDIA H200"]
    assert isinstance(found, dict)
    assert found["samples_per_second"] == pytest.approx(82.5, rel=1e-3)
    assert found["gpu_hours"] == pytest.approx(3600 * 8 * 32 / 82.5 / 3600, rel=1e-3)
    assert found["hours"] == found["gpu_hours"] / 4
    assert "micro-batch 32: 82.5 samples/s, 96 TFLOP/s (commit b3af075, 2026-11-27)" in found["measured"]


def test_recomputed_layers_and_larger_models_take_more_time() -> None:
    def hours(model: ModelConfig) -> float:
        found = durations(run(model))["NVIDIA H200"]
        assert isinstance(found, dict)
        return float(found["hours"])

    assert hours(replace(IMAGENET, activation_checkpointing=True)) == pytest.approx(hours(IMAGENET) * 4 / 3)
    assert hours(replace(IMAGENET, cross_attends=4)) == pytest.approx(hours(IMAGENET) / 2, rel=0.01)


def test_nothing_is_said_about_what_was_not_measured() -> None:
    for config in (run(replace(IMAGENET, cross_attention="factored"), precision="fp32"), run()):
        found = durations(config)
        text = {gpu for gpu, duration in found.items() if isinstance(duration, str)}
        assert text == set(found) - ({"NVIDIA H200"} if config == run() else set())
        assert all("not measured: run `python jobs/benchmark.py gpu`" in str(found[gpu]) for gpu in text)


def test_the_nearest_micro_batch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ROW, replace(ROW, micro_batch=128, samples_per_second=165.0), replace(ROW, gpu="another")]
    monkeypatch.setattr(gpus, "measured_throughput", lambda: rows)
    for micro_batch, expected in ((1, 82.5), (60, 82.5), (70, 165), (500, 165)):
        found = durations(run(micro_batch=micro_batch))
        assert isinstance(found["NVIDIA H200"], dict)
        assert found["NVIDIA H200"]["samples_per_second"] == pytest.approx(expected, rel=1e-3)
        assert "another" in found


def test_rows_are_those_that_the_benchmark_prints() -> None:
    for row in measured_throughput():
        assert [MeasuredThroughput(**entry) for entry in yaml.safe_load(row.as_yaml())] == [row]
        flops = computed_flops(row.way, SETTINGS[row.model], "cuda")
        assert row.way in GPU_CONTENDERS
        assert row.forward_gflops == pytest.approx(flops / 1e9, rel=0.02)


def test_a_larger_card_takes_at_least_as_large_a_micro_batch() -> None:
    model = replace(IMAGENET, latents=64, width=128, activation_checkpointing=True)
    found = largest_micro_batches(run(model))
    assert list(found) == list(GPU_MEMORY)
    assert found["NVIDIA L4"] == found["NVIDIA A10G"] < found["NVIDIA A100-SXM4-40GB"] < found["NVIDIA H200"]
