"""Signals of training steps: they change no bit of it, and are the same at every ZeRO stage."""

import math
from typing import Any

import pytest
import ranks
import signal_ranks

from perceiver_dist.training.tracker.prometheus import SIGNAL_GAUGES

STAGES = (0, 1, 2, 3)
Results = dict[str, list[dict[str, float]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("signals")
    alone: list[Any] = [("whole adamw", signal_ranks.norms_of_whole_tensors, "adamw")]
    alone += [("whole lamb", signal_ranks.norms_of_whole_tensors, "lamb")]
    # Two micro-steps in a step, where the others have two ranks.
    alone += [("accumulated", signal_ranks.train, 2, "adamw", True)]
    pairs = [(0, "adamw"), (1, "adamw"), (2, "adamw"), (3, "adamw"), (2, "lamb")]
    work = [
        (f"{optimizer} {stage} {watched}", signal_ranks.train, stage, optimizer, watched)
        for stage, optimizer in pairs
        for watched in (True, False)
    ]
    return {**ranks.run_ranks(1, folder, *alone), **ranks.run_ranks(2, folder, *work)}  # type: ignore[dict-item]  # dicts instead of losses


@pytest.mark.parametrize("run", ["adamw 0", "adamw 1", "adamw 2", "adamw 3", "lamb 2"])
def test_signals_change_no_bit_of_a_training(results: Results, run: str) -> None:
    assert results[f"{run} True"][: ranks.STEPS] == results[f"{run} False"]


@pytest.mark.parametrize("run", ["adamw 0", "adamw 1", "adamw 2", "adamw 3", "lamb 2"])
def test_norms_are_those_of_whole_tensors(results: Results, run: str) -> None:
    first = results[f"{run} True"][ranks.STEPS]
    [expected] = results[f"whole {run.partition(' ')[0]}"]
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_norms_are_those_of_a_step_not_of_a_micro_step(results: Results) -> None:
    alone, of_two = results["accumulated"][ranks.STEPS], results["adamw 2 True"][ranks.STEPS]
    norms = {name: value for name, value in of_two.items() if "_norm/" in name or "_ratio/" in name}
    assert {name: alone[name] for name in norms} == pytest.approx(norms, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_norms_of_the_parts_add_up_to_the_global_norm(results: Results, stage: int) -> None:
    for log in results[f"adamw {stage} True"][ranks.STEPS :]:
        squares = [value**2 for name, value in log.items() if name.startswith("gradient_norm/")]
        assert math.sqrt(sum(squares)) == pytest.approx(log["global_norm"], rel=1e-4)
        assert log["global_norm"] > signal_ranks.CLIP_NORM or log["clipped"] < 1


@pytest.mark.parametrize("stage", STAGES)
def test_attention_of_every_source_is_measured_at_every_stage(results: Results, stage: int) -> None:
    logs, same = (results[f"adamw {of} True"][ranks.STEPS :] for of in (stage, 0))
    assert len(logs) == ranks.STEPS // 4
    for log, expected in zip(logs, same, strict=True):
        for name in ("entropy/pictures/1", "entropy/both/2", "saturated/both/1", "latent_cosine/pictures"):
            assert 0 <= log[name] <= 1
            assert log[name] == pytest.approx(expected[name], abs=1e-4)


def test_every_signal_has_a_gauge_with_its_labels(results: Results) -> None:
    for log in results["adamw 2 True"][ranks.STEPS :]:
        for name in set(log) - {"global_norm"}:
            kind, *words = name.split("/")
            assert len(SIGNAL_GAUGES[kind][2]) == len(words)
