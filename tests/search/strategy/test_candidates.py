"""Candidates: deterministic functions of the seed and the record, valid, within the limits, and without duplicates."""

import math
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import (
    SQUARES,
    all_drawn,
    as_json,
    candidates,
    complete,
    search_run,
    small_training,
)

import perceiver_dist.search.strategy.candidates
from perceiver_dist.errors import UserError
from perceiver_dist.search.search_preview import preview
from perceiver_dist.search.strategy.budget import cost_of
from perceiver_dist.search.strategy.candidates import Candidates
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import SearchRecord, load_record
from perceiver_dist.search.study.space import parse_space, with_values

SPACE: dict[str, Any] = {
    "model.latents": {"low": 4, "high": 60, "step": 14},
    "model.width": [16, 32],
    "model.share_latent_blocks": [True, False],
    "sources.squares.modalities": [["image"], ["image", "audio"]],
    "optim.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
}
"""20 shapes, each of which is traced once for its memory, at a tenth of a second for each set of modalities."""
SHAPES: dict[str, Any] = {"model.latents": [4, 8, 64], "model.width": [16, 32]}


def scored_search(source: Candidates, scores: list[float]) -> SearchRecord:
    """Return a search whose trials were completed one after the other with these scores."""
    record = SearchRecord()
    for score in scores:
        trial = source.draw(record)
        assert trial is not None
        complete(trial, score)
        record.trials.append(trial)
    return record


def test_the_baseline_comes_first() -> None:
    source = candidates(space={**SHAPES, "model.latents": [4]})
    [first, *_] = all_drawn(source, SearchRecord())
    assert first == {"model.latents": 8, "model.width": 32}
    [first, *_] = all_drawn(candidates(space=SHAPES, baseline=False, sampler="grid"), SearchRecord())
    assert first == {"model.latents": 4, "model.width": 16}


@settings(max_examples=20)
@given(seed=st.integers(0, 2**64), sampler=st.sampled_from(["random", "tpe"]))
def test_equal_records_draw_equal_candidates_within_the_space(seed: int, sampler: str) -> None:
    source = candidates(space=SPACE, seed=seed, sampler=sampler, trials=6, baseline=False)
    drawn = all_drawn(source, SearchRecord())
    assert drawn == all_drawn(source, SearchRecord())
    dimensions = parse_space(SPACE, small_training())
    assert all(dimensions[name].to_optuna(values[name]) is not None for values in drawn for name in SPACE)


def test_different_seeds_draw_different_candidates() -> None:
    drawn = [all_drawn(candidates(space=SPACE, seed=seed, trials=3), SearchRecord()) for seed in (0, 1)]
    assert drawn[0][0] == drawn[1][0]
    assert drawn[0][1] != drawn[1][1] != drawn[0][2]


@settings(max_examples=10)
@given(
    sampler=st.sampled_from(["random", "tpe", "grid"]),
    states=st.lists(st.sampled_from(["running", "completed", "stopped", "failed"]), min_size=11, max_size=11),
)
def test_a_loaded_record_draws_the_same_candidates(
    tmp_path_factory: pytest.TempPathFactory, sampler: str, states: list[Any]
) -> None:
    file = str(tmp_path_factory.mktemp("search") / "search.json")
    space = {**SPACE, "optim.learning_rate": [1e-4, 1e-3]}
    source = candidates(space=space, sampler=sampler, trials=12, max_parameters=40_000)
    record = SearchRecord()
    for state in states:
        record.save(file)
        read = load_record(file)
        assert read is not None
        trial = source.draw(record)
        assert trial == source.draw(read)
        assert trial is not None
        assert as_json(read) == as_json(record)
        complete(trial, 1 / trial.values["model.latents"])
        trial.state = state
        record.trials.append(trial)


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_small_spaces_are_exhausted_without_duplicates(sampler: str) -> None:
    record = SearchRecord()
    tried = all_drawn(candidates(space=SHAPES, sampler=sampler, trials=99), record)
    assert sorted(tuple(values.values()) for values in tried) == [
        (n, d) for n in (4, 8, 64) for d in (16, 32)
    ]
    assert record.drawn == len(tried) - 1 + record.rejected["drawn before"]


def test_the_number_of_trials_is_limited() -> None:
    assert len(all_drawn(candidates(space=SPACE, trials=3), SearchRecord())) == 3


def test_a_grid_tries_all_combinations_within_the_limits_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceiver_dist.search.strategy.candidates, "_MAX_REJECTED_DRAWS", 2)
    space = {"model.width": [32, 128, 16], "model.latents": {"low": 4, "high": 8}}
    source = candidates(space=space, sampler="grid", trials=99, max_parameters=100_000, baseline=False)
    record = SearchRecord()
    tried = [tuple(values.values()) for values in all_drawn(source, record)]
    assert tried == [(width, latents) for width in (32, 16) for latents in (4, 5, 6, 7, 8)]
    assert record.rejected == {"over search.max_parameters 100000": 5}


@pytest.mark.parametrize("limit", ["parameters", "flops_per_sample", "memory_per_rank"])
def test_candidates_over_a_limit_are_counted_and_rejected(limit: str) -> None:
    maximum = getattr(cost_of(with_values(small_training(), {"model.latents": 16}), "cpu"), limit)
    record = SearchRecord()
    options: dict[str, Any] = {f"max_{limit}": maximum}
    all_drawn(candidates(space=SPACE, trials=20, **options), record)
    assert len(record.trials) == 20
    assert all(getattr(trial.cost, limit) <= maximum for trial in record.trials)
    assert record.rejected.keys() == {f"over search.max_{limit} {maximum:g}"}
    assert record.drawn == 19 + sum(record.rejected.values())


def test_invalid_combinations_are_counted_and_rejected() -> None:
    record = SearchRecord()
    space = {"model.width": [30, 32], "model.heads": [3, 4]}
    tried = all_drawn(candidates(space=space, sampler="grid", trials=9), record)
    assert tried == [{"model.width": 32, "model.heads": 4}, {"model.width": 30, "model.heads": 3}]
    assert record.rejected["drawn before"] == 1
    assert sum("does not divide model.width" in reason for reason in record.rejected) == 2


def test_no_candidate_within_the_limits_is_an_error_with_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceiver_dist.search.strategy.candidates, "_MAX_REJECTED_DRAWS", 30)
    source, record = candidates(space=SHAPES, max_parameters=100), SearchRecord()
    first = source.draw(record)
    assert first is not None
    record.trials.append(first)
    with pytest.raises(
        UserError,
        match=r"^search: none of the 30 candidates drawn can be tried \(.*max_parameters 100.*limits",
    ):
        source.draw(record)


def test_tpe_depends_on_scores() -> None:
    source = candidates(space=SPACE, sampler="tpe", trials=12)
    low, high = (
        scored_search(source, scores) for scores in ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.6, 0.1, 0.1, 0, 0, 0])
    )
    assert [trial.values for trial in low.trials[:4]] == [trial.values for trial in high.trials[:4]]
    assert source.draw(low) != source.draw(high)


def test_random_does_not_depend_on_scores() -> None:
    source = candidates(space=SPACE, sampler="random", trials=12)
    assert source.draw(scored_search(source, [0.1] * 6)) == source.draw(scored_search(source, [0.1, 0.9] * 3))


def test_tpe_draws_near_the_best_values() -> None:
    space = {"optim.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}
    source = candidates(space=space, sampler="tpe", trials=40)
    record = SearchRecord()
    while (trial := source.draw(record)) is not None:
        complete(trial, (5 + math.log10(trial.values["optim.learning_rate"])) / 4)
        record.trials.append(trial)
    late = [trial.values["optim.learning_rate"] > 1e-2 for trial in record.trials[20:]]
    assert sum(late) > 10


def test_tpe_finds_cheap_shapes_with_minimize_flops() -> None:
    space = {"model.latents": {"low": 4, "high": 200}}
    search = SearchConfig(space=space, sampler="tpe", scheduler="none", trials=30, minimize_flops=True)
    source = Candidates(search, small_training(SQUARES), "cpu")
    record = scored_search(source, [0.5] * 30)
    flops = [trial.cost.flops_per_sample for trial in record.trials[1:]]
    assert sum(flops[15:]) < 0.7 * sum(flops[:15])


def test_equal_flops_are_those_of_the_baseline() -> None:
    source = candidates(space=SHAPES, iso_flops=True, trials=6, evaluations=7)
    record = SearchRecord()
    all_drawn(source, record)
    assert record.trials[0].cost.steps == 98
    for trial in record.trials:
        one_step = trial.cost.training_flops / trial.cost.steps
        assert abs(trial.cost.training_flops - record.trials[0].cost.training_flops) <= (7 / 2 + 2) * one_step
        assert source.training_of(trial.values).train.steps == trial.cost.steps


@pytest.mark.parametrize("options", [{}, {"sampler": "tpe"}, {"sampler": "tpe", "minimize_flops": True}])
def test_optuna_logs_and_warns_about_nothing(
    options: dict[str, Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    uneven = {**SPACE, "model.latents": {"low": 4, "high": 63, "step": 8}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_drawn(candidates(space=uneven, trials=8, scheduler="none", **options), SearchRecord())
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_a_preview_shows_the_candidates_of_a_search_without_scores(sampler: str) -> None:
    config = search_run(space=SHAPES, sampler=sampler, trials=5, max_parameters=60_000)
    found, record = preview(config), SearchRecord()
    tried = all_drawn(Candidates(config.search, config.training, "cpu"), record)
    assert [trial["values"] for trial in found["trials"]] == tried
    assert [trial["cost"]["steps"] for trial in found["trials"]] == [99] * len(tried)
    assert found["rejected"] == record.rejected
    assert found["training_flops"] == sum(trial.cost.training_flops for trial in record.trials)


def test_a_preview_rejects_invalid_options() -> None:
    with pytest.raises(UserError, match=r"^search\.metric is 'loss', must be mean or one of"):
        preview(search_run(space=SHAPES, metric="loss"))
    with pytest.raises(UserError, match=r"^search\.space is empty"):
        preview(search_run())
