"""Warnings about runs that do not learn: once per cause, only after the warm-up, and silent for runs that do."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.run_config import RunConfig, TrainConfig
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.training.tracker.learning_watch import LearningWatch
from perceiver_dist.training.tracker.logged_metrics import StepMetrics
from pipelines.shards.source import SourceConfig

SOURCES = [
    SourceConfig("digits", "none", ["image"], num_classes=10),
    SourceConfig("tags", "none", ["image"], num_classes=5, task="multilabel"),
]
CONFIG = RunConfig(
    ModelConfig(latents=16, image=ImageInput(height=8, width=8)),
    SOURCES,
    optim=OptimConfig(warmup_steps=50),
    train=TrainConfig(steps=1000),
)
CHANCE = {"digits": math.log(10), "tags": math.log(2)}
LEARNED = {"digits": 1.0, "tags": 0.3}


def warnings(
    losses: Mapping[str, float] = LEARNED,
    signals: Mapping[str, float] | None = None,
    config: RunConfig = CONFIG,
    norm: float = 7.0,
) -> list[tuple[int, str]]:
    """Return the warnings of a run with the same numbers in every log, each with its step."""
    watch = LearningWatch(config)
    logs = [
        StepMetrics(step=step, losses=losses, gradient_norm=norm, signals=signals or {})
        for step in range(10, 1001, 10)
    ]
    return [(log.step, line) for log in logs for line in watch.add(log)]


def test_a_run_that_learns_gets_no_warning() -> None:
    signals = {"clipped": 0.9, "saturated/digits/1": 0.5, "entropy/digits/1": 0.2}
    assert warnings(signals=signals) == []


def test_a_loss_at_chance_after_the_warm_up_is_reported_once_for_each_source() -> None:
    digits, tags = warnings(losses=CHANCE)
    assert digits == (
        250,
        "source 'digits' is not learned: in steps 51 to 250 its loss is 2.303, that of guessing is ln 10 = 2.303; "
        "lower optim.learning_rate, or check its labels with jobs/inspect_data.py",
    )
    assert "source 'tags'" in tags[1]
    assert "ln 2 = 0.693" in tags[1]


def test_a_source_with_a_small_weight_is_judged_by_as_many_steps_of_its_own() -> None:
    often, seldom = replace(SOURCES[0], weight=4.0), SOURCES[1]
    config = replace(CONFIG, sources=[often, seldom])
    assert [step for step, _ in warnings(losses=CHANCE, config=config)] == [180, 550]


def test_a_loss_that_rises_to_chance_late_is_reported() -> None:
    watch = LearningWatch(CONFIG)
    found = [
        line
        for step in range(10, 1001, 10)
        for line in watch.add(StepMetrics(step=step, losses=LEARNED if step < 500 else CHANCE))
    ]
    assert len(found) == 2


def test_gradients_of_which_nearly_all_are_clipped_to_a_fraction_are_reported() -> None:
    [(step, line)] = warnings(signals={"clipped": 0.99}, norm=37.0)
    assert step == 150
    assert line == (
        "99% of the gradients are clipped in steps 51 to 150: their median norm is 37, optim.clip_norm is 1; raise it, "
        "or lower optim.learning_rate"
    )
    assert warnings(signals={"clipped": 0.5}, norm=37.0) == []
    assert warnings(signals={"clipped": 0.99}, norm=4.0) == []


def test_collapsed_attention_is_reported_by_cross_attend() -> None:
    [(_, line)] = warnings(signals={"saturated/digits/1": 0.3, "saturated/digits/2": 0.97})
    assert "in cross-attend 2, 97% of the latents give a single token of source 'digits'" in line
    assert "so at most 16 of its 64 tokens are read; lower" in line


def test_a_latent_for_each_token_is_no_collapse() -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, latents=33))
    assert warnings(signals={"saturated/digits/1": 1.0}, config=config) == []


@pytest.mark.parametrize(("steps", "first"), [(1000, 250), (20000, 850)])
def test_long_runs_have_longer_to_start(steps: int, first: int) -> None:
    config = replace(CONFIG, train=TrainConfig(steps=steps))
    assert warnings(losses=CHANCE, config=config)[0][0] == first


def test_steps_that_are_repeated_after_a_restart_count_once() -> None:
    watch = LearningWatch(CONFIG)
    bad = StepMetrics(losses=CHANCE)
    for step in [*range(10, 241, 10), *range(200, 241, 10)]:
        assert watch.add(replace(bad, step=step)) == []
    assert len(watch.add(replace(bad, step=250))) == 2
