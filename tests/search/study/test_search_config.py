"""Options of a search: validation, the objective, and the options that may change when a search resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_training import SQUARES, TONES, search_run, small_training

from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.errors import UserError
from perceiver_dist.search.search_driver import check_same_search
from perceiver_dist.search.study.objective import check_metric, score_of
from perceiver_dist.search.study.search_config import SearchConfig, SearchRunConfig
from perceiver_dist.search.study.space import with_values
from perceiver_dist.training.tracker.logged_metrics import EvaluationMetrics

LATENTS = {"model.latents": [8, 16]}


def error_of(**options: Any) -> str:
    """Return the error for options of a search."""
    with pytest.raises(UserError) as caught:
        SearchConfig(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(config: SearchRunConfig, values: dict[str, Any]) -> SearchRunConfig:
    """Return a copy of a configuration with other values of some options."""
    copy = with_values(config, values)
    assert isinstance(copy, SearchRunConfig)
    return copy


def started(config: SearchRunConfig, folder: Path) -> str:
    """Return the folder of a search that was started with a configuration."""
    (folder / "config.yaml").write_text(to_yaml(config))
    return str(folder)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"trials": 0}, "search.trials is 0, must be at least 1"),
        ({"evaluations": 0}, "search.evaluations is 0, must be at least 1"),
        ({"reduction_factor": 1}, "search.reduction_factor is 1, must be at least 2"),
        ({"max_concurrent": 0}, "search.max_concurrent is 0, must be at least 1"),
        ({"max_parameters": 0}, "search.max_parameters is 0, must be above 0, or null for no limit"),
        (
            {"max_flops_per_sample": -1.0},
            "search.max_flops_per_sample is -1.0, must be above 0, or null for no limit",
        ),
        (
            {"max_memory_per_rank": float("nan")},
            "search.max_memory_per_rank is nan, must be above 0, or null",
        ),
        ({"name": "a/b"}, "search.name is 'a/b'; use a name without slashes, colons and spaces"),
        ({"name": ""}, "search.name is ''; use a name without slashes, colons and spaces"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], line: str) -> None:
    assert error_of(**options).startswith(line)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"minimize_flops": True, "scheduler": "none"},
            "search.minimize_flops is true with sampler random and",
        ),
        (
            {"minimize_flops": True, "sampler": "tpe"},
            "search.minimize_flops is true with sampler tpe and scheduler asha",
        ),
        (
            {"scheduler": "pbt", "sampler": "tpe"},
            "search.scheduler is pbt with sampler tpe and iso_flops False",
        ),
        (
            {"scheduler": "pbt", "iso_flops": True},
            "search.scheduler is pbt with sampler random and iso_flops True",
        ),
    ],
)
def test_options_that_exclude_each_other_are_named(options: dict[str, Any], line: str) -> None:
    assert error_of(**options).startswith(line)


def test_training_is_the_configuration_without_the_search() -> None:
    assert search_run(space=LATENTS).training == small_training()


def test_a_score_is_one_metric_or_the_mean_over_sources() -> None:
    metrics = {
        "squares/accuracy": 0.9, "squares/loss": 0.2, "squares/accuracy_image_only": 0.1,
        "tones/mean_average_precision": 0.5, "tones/loss": 0.7,
    }  # fmt: skip
    evaluation = EvaluationMetrics.from_flat(33, metrics)
    assert score_of(evaluation, "mean", small_training()) == pytest.approx(0.7)
    assert score_of(evaluation, "squares/accuracy", small_training()) == 0.9
    assert score_of(evaluation, "tones/mean_average_precision", small_training()) == 0.5


@pytest.mark.parametrize(
    "metric", ["loss", "squares", "squares/loss", "tones/accuracy", "cubes/accuracy", ""]
)
def test_an_unknown_metric_is_rejected_with_the_known_ones(metric: str) -> None:
    with pytest.raises(UserError) as caught:
        check_metric(metric, small_training())
    known = "squares/accuracy, tones/mean_average_precision"
    assert str(caught.value) == f"search.metric is '{metric}', must be mean or one of {known}"


@pytest.mark.parametrize("metric", ["mean", "tones/mean_average_precision"])
def test_a_metric_needs_held_out_shards_of_its_sources(metric: str) -> None:
    training = small_training(SQUARES, replace(TONES, eval_shards=""))
    check_metric("squares/accuracy", training)
    check_metric(metric, small_training())
    with pytest.raises(
        UserError, match=rf"^search\.metric is {metric}, but source 'tones' has no eval_shards"
    ):
        check_metric(metric, training)


def test_trials_do_not_end_early_by_themselves() -> None:
    training = small_training()
    train = replace(training.train, eval_every=5, best_metric="squares/accuracy", patience=2)
    with pytest.raises(
        UserError, match=r"train\.patience is 2; a search compares trials after the same steps"
    ):
        check_metric("mean", replace(training, train=train))


def test_a_new_search_may_have_any_options(tmp_path: Path) -> None:
    check_same_search(search_run(space=LATENTS), str(tmp_path))


@pytest.mark.parametrize("changes", [{}, {"trials": 40}, {"max_concurrent": 2}])
def test_a_search_resumes_with_more_trials_or_more_concurrent_ones(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = started(search_run(space=LATENTS), tmp_path)
    check_same_search(search_run(space=LATENTS, **changes), folder)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 1}, r"search\.seed is 1, but search 'search' was started with 0"),
        ({"space": {"model.latents": [8]}}, r"search\.space\.model\.latents is \[8\], but .* with \[8, 16\]"),
        (
            {"space": {**LATENTS, "train.lanes": [2]}},
            r"search\.space\.train\.lanes is \[2\], but .* with None",
        ),
        ({"space": {"model.latents": {"low": 8, "high": 16}}}, r"search\.space\.model\.latents is None, but"),
        ({"evaluations": 4}, r"search\.evaluations is 4, but search 'search' was started with 3"),
        ({"max_parameters": 1e6}, r"search\.max_parameters is 1000000\.0, but .* with None"),
    ],
)
def test_a_search_does_not_resume_with_other_candidates(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    folder = started(search_run(space=LATENTS), tmp_path)
    with pytest.raises(UserError, match=rf"^{line}"):
        check_same_search(search_run(**{"space": LATENTS, **changes}), folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("train.seed", 1), ("train.steps", 200), ("model.width", 64), ("sources.tones.weight", 2.0)],
)
def test_a_search_does_not_resume_with_another_training(tmp_path: Path, name: str, value: Any) -> None:
    config = search_run(space=LATENTS)
    folder = started(config, tmp_path)
    with pytest.raises(UserError, match=rf"^{name} is {value}, but search 'search' was started with"):
        check_same_search(changed(config, {name: value}), folder)


def test_a_search_resumes_with_other_tracking_and_max_failures(
    tmp_path: Path,
) -> None:
    config = search_run(space=LATENTS)
    folder = started(config, tmp_path)
    check_same_search(changed(config, {"tracking.experiment": "other", "train.max_failures": 9}), folder)


@pytest.mark.parametrize(
    "rendered", ["runs/demo/fashion_mnist/train-*.tar", "s3://b/demo/fashion_mnist/train-*.tar"]
)
def test_demo_shards_are_equal_before_and_after_they_are_rendered(tmp_path: Path, rendered: str) -> None:
    config = search_run(space=LATENTS)
    folder = started(changed(config, {"sources.squares.train_shards": rendered}), tmp_path)
    demo = changed(config, {"sources.squares.train_shards": "demo:fashion_mnist/train-*.tar"})
    check_same_search(demo, folder)
    with pytest.raises(UserError, match=r"^sources\.squares\.train_shards is squares/train-"):
        check_same_search(config, folder)
