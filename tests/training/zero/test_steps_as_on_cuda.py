"""Tests on CPUs of what engines have on CUDA alone: bf16 by autocast, the fused optimizer, compiled layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import steps_as_on_cuda

from perceiver_dist.errors import UserError
from perceiver_dist.training.zero import engine

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Results of one process with one rank, by name and stage."""
    work: list[tuple[Any, ...]] = []
    for stage in STAGES:
        work += [
            (f"dtypes {stage}", steps_as_on_cuda.logits_within_cuda_autocast, stage),
            (f"plain {stage}", ranks.train_and_save, stage),
            (f"fused {stage}", steps_as_on_cuda.train_fused, stage),
        ]
        work += [
            (f"{precision} {stage}", steps_as_on_cuda.train_plain, stage, precision)
            for precision in ("fp32", "bf16")
        ]
    # Last, since it leaves the fused optimizer on.
    work += [(f"waits {stage}", steps_as_on_cuda.waits_of_a_step, stage) for stage in (0, 1, 2)]
    return ranks.run_ranks(1, tmp_path_factory.mktemp("cuda"), *work)


@pytest.mark.parametrize("stage", STAGES)
def test_a_bf16_run_computes_in_bf16_even_within_autocast(found: dict[str, list[float]], stage: int) -> None:
    assert found[f"dtypes {stage}"] == [True, True]


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_trains_as_fp32_does(found: dict[str, list[float]], stage: int) -> None:
    assert found[f"bf16 {stage}"] != found[f"fp32 {stage}"]
    assert found[f"bf16 {stage}"] == pytest.approx(found[f"fp32 {stage}"], rel=0.02)


@pytest.mark.parametrize("stage", STAGES)
def test_the_fused_optimizer_takes_the_same_steps_and_resumes(
    found: dict[str, list[float]], stage: int
) -> None:
    assert found[f"fused {stage}"] == pytest.approx(found[f"plain {stage}"], rel=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_micro_steps_never_wait_for_the_device_and_the_optimizer_waits_for_the_norm(
    found: dict[str, list[float]], stage: int
) -> None:
    # Whether the gradient is finite decides whether the step is taken, at stage 0 in `_Guard`. DeepSpeed reads the norm
    # again for each of the three parameter groups that it clips.
    assert found[f"waits {stage}"] == [0, 4 if stage else 1]


@pytest.mark.long  # two processes with one compilation for each precision, a minute each
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_take_the_same_steps_and_resume_exactly(tmp_path: Path, precision: str) -> None:
    stages = (0, 1, 2)
    plain = [(f"plain {stage}", steps_as_on_cuda.train_plain, stage, precision) for stage in stages]
    compiled = [(f"compiled {stage}", steps_as_on_cuda.train_compiled, stage, precision) for stage in stages]
    trained = ranks.run_ranks(1, tmp_path, *plain, *compiled)
    resumed = ranks.run_ranks(
        1, tmp_path, *((f"{stage}", steps_as_on_cuda.resume_compiled, stage, precision) for stage in stages)
    )
    for stage in stages:
        tolerance = 1e-5 if precision == "fp32" else 0.02
        assert trained[f"compiled {stage}"] == pytest.approx(trained[f"plain {stage}"], rel=tolerance)
        assert resumed[f"{stage}"] == trained[f"compiled {stage}"][ranks.SAVED_AT :]


def test_layers_are_compiled_on_cuda_for_large_batches_below_stage_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "which", lambda name: f"/bin/{name}")
    large = replace(
        ranks.CONFIG,
        model=replace(ranks.CONFIG.model, latents=512, width=1024, heads=8),
        train=replace(ranks.CONFIG.train, micro_batch=8),
    )
    small = replace(large, train=replace(large.train, micro_batch=4))
    assert engine.compiles_layers(large, "cuda")
    assert not engine.compiles_layers(large, "cpu")
    assert not engine.compiles_layers(small, "cuda")
    assert not engine.compiles_layers(replace(large, deepspeed=ranks.zero(3)), "cuda")
    assert engine.compiles_layers(replace(small, train=replace(small.train, compile=True)), "cpu")
    assert not engine.compiles_layers(replace(large, train=replace(large.train, compile=False)), "cuda")
    monkeypatch.setattr(engine, "which", lambda _: None)
    assert not engine.compiles_layers(large, "cuda")


def test_deepspeed_does_not_time_steps() -> None:
    # Its timer waits for the device twice in a micro-step, which no CPU shows.
    assert engine.deepspeed_config(ranks.CONFIG, 1)["timers"] == {"throughput": {"enabled": False}}


def test_compilation_at_stage_3_is_rejected() -> None:
    with pytest.raises(UserError, match=r"train\.compile is true, but deepspeed\.zero_stage is 3"):
        replace(ranks.CONFIG, train=replace(ranks.CONFIG.train, compile=True), deepspeed=ranks.zero(3))
