"""Budgets: costs equal those of the dry run, and equal FLOPs are met to half a step per evaluation."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_training import SQUARES, TONES, small_training

from perceiver_dist.config.run_config import RunConfig, StorageConfig
from perceiver_dist.model.cost import forward_flops
from perceiver_dist.preflight.dry_run import dry_run
from perceiver_dist.preflight.step_trace import trace_step
from perceiver_dist.search.strategy.budget import cost_of, fit_to_search, over_limit, training_flops_of
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.space import with_values
from pipelines.shards.shard_writer import write_shard

SHAPES = {
    "model.latents": st.integers(1, 64),
    "model.width": st.integers(1, 16).map(lambda n: 4 * n),
    "model.cross_attends": st.integers(1, 4),
    "model.self_attends_per_block": st.integers(1, 4),
}
STEPS = 900
TARGET = small_training(SQUARES)
TARGET_FLOPS = training_flops_of(with_values(TARGET, {"train.steps": STEPS}), "cpu")


def fitted(training: RunConfig, evaluations: int = 3, flops: float | None = None) -> RunConfig:
    return fit_to_search(training, SearchConfig(evaluations=evaluations), flops, "cpu")


def one_step_of(training: RunConfig) -> float:
    """Return the FLOPs of a step, as a mean over the sources by weight."""
    weights = training.weights
    by_source = [
        weights[source.name] * forward_flops(training.model, source.modalities, "cpu")
        for source in training.sources
    ]
    return 3 * 4 * 8 * sum(by_source) / sum(weights.values())


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_costs_equal_those_of_the_dry_run(tmp_path: Path, zero_stage: int) -> None:
    for name in ("squares", "tones"):
        (tmp_path / name).mkdir()
        for shard in ("train-0", "eval"):
            write_shard([{"__key__": "0", "cls": 0, "png": b"not read"}], tmp_path / name / f"{shard}.tar")
    sources = [
        replace(s, train_shards=f"{tmp_path}/{s.train_shards}", eval_shards=f"{tmp_path}/{s.eval_shards}")
        for s in (SQUARES, TONES)
    ]
    training = replace(small_training(*sources), storage=StorageConfig(str(tmp_path)))
    training = with_values(training, {"deepspeed.zero_stage": zero_stage})
    cost, expected = cost_of(training, "cpu"), dry_run(training)
    assert cost.parameters == expected["parameters"]
    assert cost.memory_per_rank == expected["memory_per_rank"]["total"]
    assert cost.steps == expected["steps"]
    assert cost.flops_per_sample == sum(expected["forward_flops_per_sample"].values()) / 2


def test_training_flops_follow_the_schedule_of_sources() -> None:
    training = small_training(replace(SQUARES, weight=3.0), TONES)
    squares, tones = (forward_flops(training.model, [modality]) for modality in ("image", "audio"))
    cost = cost_of(training, "cpu")
    assert cost.flops_per_sample == (3 * squares + tones) / 4
    assert cost.training_flops == 3 * 4 * 8 * (75 * squares + 25 * tones)


def test_flops_depend_on_the_device() -> None:
    training = small_training()
    on_gpu = training_flops_of(training, "cuda")
    dense = with_values(training, {"model.cross_attention": "dense"})
    assert on_gpu == training_flops_of(dense, "cpu") != training_flops_of(training, "cpu")


@given(shape=st.fixed_dictionaries(SHAPES), evaluations=st.integers(1, 9))
def test_equal_flops_are_met_to_half_a_step_per_evaluation(shape: dict[str, int], evaluations: int) -> None:
    found = fitted(with_values(TARGET, shape), evaluations, TARGET_FLOPS)
    flops = training_flops_of(found, "cpu")
    assert found.train.steps == evaluations * found.train.eval_every
    off_by = (flops - TARGET_FLOPS) / (flops / found.train.steps)
    assert abs(off_by) <= evaluations / 2 + 1e-6 or found.train.eval_every == 1


@given(shape=st.fixed_dictionaries(SHAPES))
def test_several_sources_add_at_most_one_round_of_the_schedule(shape: dict[str, int]) -> None:
    training = small_training(replace(SQUARES, weight=3.0), TONES)
    target = training_flops_of(with_values(training, {"train.steps": STEPS}), "cpu")
    found = fitted(with_values(training, shape), 3, target)
    flops = training_flops_of(found, "cpu")
    assert abs(flops - target) <= (3 / 2 + 4) * one_step_of(found)


@given(shape=st.fixed_dictionaries(SHAPES), warmup=st.integers(0, 100))
def test_warmup_keeps_its_share_of_the_steps(shape: dict[str, int], warmup: int) -> None:
    training = with_values(TARGET, {**shape, "optim.warmup_steps": warmup})
    found = fitted(training, 3, TARGET_FLOPS)
    assert found.optim.warmup_steps == pytest.approx(warmup / 100 * found.train.steps, abs=0.5)


@given(steps=st.integers(1, 500), evaluations=st.integers(1, 20))
def test_without_equal_flops_steps_are_rounded_to_a_multiple_of_the_evaluations(
    steps: int, evaluations: int
) -> None:
    training = with_values(TARGET, {"train.steps": steps})
    found = fitted(training, evaluations)
    assert found.train.steps % evaluations == 0
    assert found.train.eval_every == found.train.steps // evaluations >= 1
    assert abs(found.train.steps - steps) <= evaluations / 2 or found.train.steps == evaluations
    assert found.optim == training.optim


def test_a_shape_too_expensive_for_one_step_takes_one_per_evaluation() -> None:
    assert fitted(TARGET, 4, 1.0).train.steps == 4


@pytest.mark.parametrize("name", ["parameters", "flops_per_sample", "memory_per_rank"])
def test_a_cost_equal_to_the_limit_is_allowed(name: str) -> None:
    limit = getattr(cost_of(TARGET, "cpu"), name)
    assert over_limit(TARGET, SearchConfig(**{f"max_{name}": limit}), "cpu") == ""
    below = SearchConfig(**{f"max_{name}": limit - 1})
    assert over_limit(TARGET, below, "cpu") == f"over search.max_{name} {limit - 1:g}"


def test_candidates_over_a_cheaper_limit_are_rejected_without_a_trace_of_their_memory() -> None:
    before = trace_step.cache_info()
    untraced = with_values(TARGET, {"model.latents": 77})
    limits = SearchConfig(max_parameters=1000, max_memory_per_rank=1)
    assert over_limit(untraced, limits, "cpu") == "over search.max_parameters 1000"
    assert over_limit(untraced, SearchConfig(), "cpu") == ""
    assert trace_step.cache_info() == before
