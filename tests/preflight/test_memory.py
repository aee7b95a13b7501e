"""Memory of a rank: against DeepSpeed's engine on CPUs, allocation by allocation, and against one H200."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from ranks import run_ranks

from perceiver_dist.benchmarks.model_settings import SETTINGS
from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.run_config import DeepSpeedConfig, RunConfig, TrainConfig, WorkerRange
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import CrossAttentionPath, ModelConfig
from perceiver_dist.model.perceiver import Perceiver
from perceiver_dist.model.precision import autocast
from perceiver_dist.preflight.memory import largest_micro_batch, reduction_bucket, training_memory
from perceiver_dist.preflight.step_trace import AllocationTrace
from perceiver_dist.training.zero.engine import build_engine
from pipelines.shards.source import SourceConfig

MODEL = ModelConfig(latents=64, width=256, self_attends_per_block=3, image=ImageInput(32, 32, 3, bands=16))
IMAGES = SourceConfig("images", "not-read.tar", ["image"], num_classes=1000)
GIB = 2**30
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
PATHS: tuple[CrossAttentionPath, ...] = ("dense", "factored", "separable")


def run(model: ModelConfig, zero_stage: Literal[0, 1, 2, 3] = 2, **train: Any) -> RunConfig:
    options: dict[str, Any] = {"micro_batch": 8, "lanes": 2, "num_workers": 1, "device": "cpu"} | train
    return RunConfig(
        model, [IMAGES], train=TrainConfig(**options), deepspeed=DeepSpeedConfig(zero_stage=zero_stage)
    )


def imagenet(path: CrossAttentionPath, **train: Any) -> RunConfig:
    model = replace(SETTINGS["imagenet"], cross_attention=path)
    # Without DeepSpeed's buffers, as it was measured.
    return run(model, 0, device="cuda", lanes=1, **train)


def peaks_of_two_steps(world_size: int, _folder: Path, configs: list[RunConfig]) -> list[float]:
    """Return the peak of the bytes that a rank allocates for its model, its engine and two steps, for each run."""
    return [peak_of_two_steps(config, world_size) for config in configs]


def peak_of_two_steps(config: RunConfig, world_size: int) -> float:
    train = config.train
    shape = (train.micro_batch, *config.model.modalities["image"].array_shape)
    with AllocationTrace() as trace:
        engine = build_engine(Perceiver(config.model, config.heads), config, world_size)
        for _ in range(2 * train.lanes // world_size):
            arrays = {"image": torch.zeros(shape, dtype=torch.uint8)}
            with autocast(torch.device("cpu"), train.precision):
                logits = engine(arrays, {}, "images")
            engine.backward(logits.float().logsumexp(1).sum())
            engine.step()
    return float(trace.peak)


CASES = [run(MODEL, stage, precision=precision) for stage in STAGES for precision in ("fp32", "bf16")]
CASES += [run(MODEL, stage, lanes=1) for stage in (0, 2)]
CASES += [
    run(replace(MODEL, activation_checkpointing=True, cross_attention=path), precision="bf16")
    for path in PATHS
]
# So few activations that the optimizer's step is the peak.
CASES += [run(replace(MODEL, latents=4), stage, micro_batch=1) for stage in STAGES[1:]]
# With an average of the weights, kept by the optimizer.
CASES += [replace(run(MODEL), optim=OptimConfig(ema_decay=0.9))]
CASES_OF_TWO_RANKS = [run(MODEL, stage, lanes=4, num_workers=2) for stage in STAGES]


@pytest.mark.parametrize(("ranks", "configs"), [(1, CASES), (2, CASES_OF_TWO_RANKS)])
def test_predictions_are_within_ten_percent_of_what_the_engine_allocates(
    ranks: int, configs: list[RunConfig], tmp_path: Path
) -> None:
    peaks = run_ranks(ranks, tmp_path, ("peaks", peaks_of_two_steps, configs))["peaks"]
    ratios = [
        training_memory(config, "cpu")["total"] / peak for config, peak in zip(configs, peaks, strict=True)
    ]
    assert ratios == pytest.approx([1] * len(ratios), abs=0.1)


@pytest.mark.parametrize(
    ("path", "precision", "micro_batch", "measured"),
    [
        ("separable", "bf16", 32, 22.0),
        ("separable", "bf16", 128, 85.3),
        ("dense", "bf16", 32, 35.5),
        ("separable", "fp32", 16, 17.9),
    ],
)
def test_predictions_are_within_ten_percent_of_an_h200(
    path: CrossAttentionPath, precision: str, micro_batch: int, measured: float
) -> None:
    """Measured at commit b3af075 (docs/experiments.md). Changes that save memory make the prediction smaller."""
    config = imagenet(path, precision=precision, micro_batch=micro_batch)
    assert training_memory(config, "cuda")["total"] / GIB < 1.1 * measured


@pytest.mark.parametrize(
    ("stage", "parameters", "gradients", "optimizer", "buffer"),
    [(0, 4, 4, 8, 0), (1, 4, 4, 6, 4), (2, 4, 2, 6, 4), (3, 2, 2, 6, 4)],
)
def test_model_states_are_fp32_and_partitioned_by_stage(
    stage: Literal[0, 1, 2, 3], parameters: int, gradients: int, optimizer: int, buffer: int
) -> None:
    config = run(MODEL, stage, lanes=4, num_workers=2, precision="bf16")
    memory, count = training_memory(config, "cpu"), reduction_bucket(config)
    expected = {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": optimizer,
        "reduction_buffer": buffer,
    }
    assert {name: memory[name] / count for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_of_the_weights_belongs_to_the_optimizer(stage: Literal[0, 1, 2, 3]) -> None:
    config = run(MODEL, stage, lanes=4, num_workers=2)
    averaged = replace(config, optim=OptimConfig(ema_decay=0.9))
    more = training_memory(averaged, "cpu")["optimizer"] - training_memory(config, "cpu")["optimizer"]
    assert more / reduction_bucket(config) == pytest.approx(2 if stage else 4, rel=1e-4)


def test_the_step_of_the_source_with_the_most_modalities_counts() -> None:
    both = replace(MODEL, audio=AudioInput(samples=640, bands=2))
    sounds = SourceConfig("sounds", "not-read.tar", ["audio"], num_classes=1000)
    config = replace(run(both), sources=[replace(IMAGES, modalities=["image", "audio"]), sounds])
    alone, reversed_order = replace(config, sources=[sounds]), replace(config, sources=config.sources[::-1])
    assert training_memory(config, "cpu")["activations"] > training_memory(run(both), "cpu")["activations"]
    assert training_memory(config, "cpu")["total"] == training_memory(reversed_order, "cpu")["total"]
    assert training_memory(alone, "cpu")["activations"] < training_memory(config, "cpu")["activations"]


def test_an_elastic_run_is_counted_with_its_fewest_workers() -> None:
    elastic = run(MODEL, lanes=4, num_workers=WorkerRange(1, 4))
    fewest = training_memory(elastic, "cpu")
    assert fewest == training_memory(run(MODEL, lanes=4), "cpu")
    assert training_memory(elastic, "cpu", ranks=4)["optimizer"] == pytest.approx(
        fewest["optimizer"] / 4, abs=12
    )


@pytest.mark.parametrize("path", ["dense", "separable"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_largest_micro_batch_fits_and_one_more_sample_does_not(
    path: CrossAttentionPath, checkpointing: bool
) -> None:
    model = replace(MODEL, cross_attention=path, activation_checkpointing=checkpointing)
    capacity = 400 * 2**20
    samples = largest_micro_batch(run(model, precision="bf16"), capacity)
    totals = [
        training_memory(run(model, precision="bf16", micro_batch=samples + more), "cuda")["total"]
        for more in (0, 1)
    ]
    # To 0.1%, since allocations are rounded to blocks.
    assert totals[0] * 0.999 <= capacity < totals[1] * 1.001


def test_no_sample_fits_into_less_than_the_model_states() -> None:
    assert largest_micro_batch(run(MODEL), 2**20) == 0


def test_the_reduction_buffer_is_no_larger_than_the_model_unless_chosen() -> None:
    config = run(MODEL)
    chosen = replace(
        config, deepspeed=DeepSpeedConfig(overrides={"zero_optimization": {"reduce_bucket_size": 1000}})
    )
    assert training_memory(config, "cpu")["reduction_buffer"] == training_memory(config, "cpu")["parameters"]
    assert training_memory(chosen, "cpu")["reduction_buffer"] == 4000
