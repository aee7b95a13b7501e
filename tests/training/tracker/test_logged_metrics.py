"""Typed metrics and the lines of metrics.jsonl."""

import math

from perceiver_dist.training.liveness.stragglers import RankTimes
from perceiver_dist.training.tracker.logged_metrics import (
    EvaluationMetrics,
    LoggedMetrics,
    StepMetrics,
    from_jsonl,
    to_jsonl,
)

STEP = StepMetrics(
    step=10,
    losses={"clips": 2.5, "fashion": 1.5},
    loss=2.0,
    seconds=4.0,
    data_wait_fraction=0.25,
    learning_rate=0.001,
    gradient_norm=0.5,
    skipped_steps=1.0,
    samples_per_second=32.0,
    step_seconds=0.4,
    samples_seen=320.0,
    gpu_memory_bytes=1024.0,
    quarantined=3.0,
    signals={"entropy/clips/1": 0.5, "clipped": 0.25},
    ranks=(RankTimes(0.25, 0.0), RankTimes(0.5, 0.125)),
)
LINES = (
    '{"step": 10, "clips/train_loss": 2.5, "fashion/train_loss": 1.5, "train/loss": 2.0, "train/seconds": 4.0, '
    '"train/data_wait_fraction": 0.25, "train/learning_rate": 0.001, "train/gradient_norm": 0.5, '
    '"train/skipped_steps": 1.0, "train/samples_per_second": 32.0, "train/step_seconds": 0.4, '
    '"train/samples_seen": 320.0, "train/gpu_memory_bytes": 1024.0, "data/quarantined": 3.0, '
    '"signals/entropy/clips/1": 0.5, "signals/clipped": 0.25, '
    '"ranks/0/forward_seconds": 0.25, "ranks/0/data_wait_seconds": 0.0, "ranks/1/forward_seconds": 0.5, '
    '"ranks/1/data_wait_seconds": 0.125}\n'
    '{"step": 10, "clips/samples": 4.0, "clips/accuracy": 0.75, "fashion/samples": 8.0}\n'
)
HISTORY: list[LoggedMetrics] = [
    STEP,
    EvaluationMetrics(10, {"clips": {"samples": 4.0, "accuracy": 0.75}, "fashion": {"samples": 8.0}}),
]


def test_lines_have_the_flat_names_in_order_and_are_read_back() -> None:
    assert to_jsonl(HISTORY) == LINES
    assert from_jsonl(LINES) == HISTORY


def test_values_that_are_undefined_are_null_and_those_that_are_missing_are_left_out() -> None:
    lines = to_jsonl([StepMetrics(step=1)])
    assert '"train/loss": null' in lines
    assert "gradient_norm" not in lines
    assert "gpu_memory_bytes" not in lines
    [read] = from_jsonl(lines)
    assert isinstance(read, StepMetrics)
    assert math.isnan(read.loss)
    assert (read.gradient_norm, read.losses) == (None, {})


def test_an_evaluation_of_a_source_called_train_is_not_taken_for_a_step() -> None:
    evaluation = EvaluationMetrics(5, {"train": {"loss": 0.5}})
    assert from_jsonl(to_jsonl([evaluation])) == [evaluation]


def test_an_evaluation_without_held_out_samples_is_kept() -> None:
    assert from_jsonl('{"step": 7}\n') == [EvaluationMetrics(7, {})]
