"""Search space: kinds of dimensions, validation in one line, and configurations with other values."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_training import SQUARES, small_training

from perceiver_dist.config.command_line import read_run, to_yaml
from perceiver_dist.config.run_config import DeepSpeedConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import VideoInput
from perceiver_dist.search.study.space import (
    Choices,
    Range,
    combinations,
    parse_space,
    values_of,
    with_values,
)

TRAINING = small_training()


def error_of(space: dict[str, Any]) -> str:
    """Return the error for a space, without the common prefix."""
    with pytest.raises(UserError) as caught:
        parse_space(space, TRAINING)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("search.space: ")


@pytest.mark.parametrize(
    ("name", "given", "dimension"),
    [
        ("model.latents", [4, 16], Choices((4, 16))),
        ("model.share_cross_attends", ["all", "none"], Choices(("all", "none"))),
        ("model.share_latent_blocks", [True, False], Choices((True, False))),
        ("model.image.max_frequency", [None, 4.0], Choices((None, 4.0))),
        (
            "sources.tones.modalities",
            [["image"], ["image", "audio"]],
            Choices((["image"], ["image", "audio"])),
        ),
        ("deepspeed.overrides", [{}, {"a": {"b": 1}}], Choices(({}, {"a": {"b": 1}}))),
        ("model.latents", {"low": 1, "high": 9}, Range(1, 9, False, None, True)),
        ("model.latents", {"low": 8, "high": 32, "step": 8}, Range(8, 32, False, 8, True)),
        ("train.steps", {"low": 10, "high": 1000, "log": True}, Range(10, 1000, True, None, True)),
        (
            "optim.learning_rate",
            {"low": 1e-4, "high": 1e-2, "log": True},
            Range(1e-4, 1e-2, True, None, False),
        ),
        ("optim.weight_decay", {"low": 0, "high": 1, "step": 0.25}, Range(0, 1, False, 0.25, False)),
        ("sources.squares.weight", {"low": 1, "high": 3}, Range(1, 3, False, None, False)),
        ("deepspeed.zero_stage", {"low": 0, "high": 3}, Range(0, 3, False, None, True)),
    ],
)
def test_lists_are_choices_and_mappings_are_ranges(name: str, given: Any, dimension: Choices | Range) -> None:
    assert parse_space({name: given}, TRAINING) == {name: dimension}


def test_a_float_option_with_an_integer_value_has_a_float_range() -> None:
    training = replace(TRAINING, optim=replace(TRAINING.optim, clip_norm=1))
    dimension = parse_space({"optim.clip_norm": {"low": 0, "high": 10}}, training)["optim.clip_norm"]
    assert isinstance(dimension, Range)
    assert not dimension.integer


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({"model.latent": [1]}, "there is no option model.latent; did you mean model.latents?"),
        ({"search.trials": [1]}, "there is no option search.trials; see --help"),
        ({"model.latents.x": [1]}, "there is no option model.latents.x; did you mean model.latents?"),
        (
            {"sources.squares.weigh": [1]},
            "there is no option sources.squares.weigh; did you mean sources.weight?",
        ),
        ({"sources.weight": [1.0]}, "sources.weight names no source; write sources.SOURCE.OPTION"),
        ({"sources.cubes": [None]}, "sources.cubes names no source; write sources.SOURCE.OPTION"),
        ({"model": [1]}, "model is a group of options; name one of them"),
        ({"model.image": [None]}, "model.image is a group of options; name one of them"),
        ({"sources": [1]}, "sources is a group of options; name one of them"),
        ({"sources.squares": [1]}, "sources.squares is a group of options; name one of them"),
        ({"model.video": [{"bands": 4}]}, "model.video cannot vary: model.video is null; set model.video.*"),
        ({"model.video.bands": [4]}, "model.video.bands cannot vary: model.video is null; set model.video.*"),
        ({"storage.path": ["a"]}, "storage.path cannot vary, it is managed by the search; remove it"),
        ({"train.eval_every": [1]}, "train.eval_every cannot vary, it is managed by the search; remove it"),
        (
            {"sources.tones.task": ["softmax"]},
            "sources.tones.task defines what is scored, so scores would not be comparable; remove it",
        ),
    ],
)
def test_an_option_that_cannot_vary_is_named(space: dict[str, Any], line: str) -> None:
    assert error_of(space) == line


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("model.latents", ["many"], "model.latents is 'many', must be int"),
        ("model.latents", [8, "16"], "model.latents is '16', must be int"),
        ("model.latents", [None], "model.latents is None, must be int"),
        ("model.latents", {"low": 1.0, "high": 8.0}, "model.latents is 1.0, must be int"),
        ("model.latents", {"low": 1, "high": 8, "step": 0.5}, "model.latents is 0.5, must be int"),
        ("optim.learning_rate", ["1e-3"], "optim.learning_rate is '1e-3', must be float"),
        ("model.share_latent_blocks", ["false"], "model.share_latent_blocks is 'false', must be bool"),
        ("model.share_latent_blocks", {"low": 0, "high": 1}, "model.share_latent_blocks is 0, must be bool"),
        ("train.precision", ["fp8"], "train.precision is 'fp8', must be one of fp32, bf16"),
        ("model.image.max_frequency", ["x"], "model.image.max_frequency is 'x', must be float or null"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(name: str, given: Any, line: str) -> None:
    assert error_of({name: given}) == line


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "must be a list of values, or a range"),
        (8, "must be a list of values, or a range"),
        ({"low": 1}, "must be a list of values, or a range"),
        ({"low": 1, "high": 8, "stop": 2}, "must be a list of values, or a range"),
        ({"low": None, "high": 8}, "low, high and step must be numbers"),
        ({"low": 1, "high": "x"}, "low, high and step must be numbers"),
        ({"low": False, "high": True}, "low, high and step must be numbers"),
        ({"low": 1, "high": float("inf")}, "low, high and step must be numbers"),
        ({"low": 8, "high": 8}, "low must be below high"),
        ({"low": 0, "high": 8, "log": True}, "with log, above 0"),
        ({"low": 1, "high": 8, "step": 0}, "step must be above 0"),
        ({"low": 1, "high": 8, "step": 2, "log": True}, "cannot be combined with log"),
    ],
)
def test_a_malformed_range_is_named(given: Any, problem: str) -> None:
    line = error_of({"model.latents": given})
    assert line.startswith(f"model.latents is {given}")
    assert problem in line


def test_an_empty_space_is_rejected_with_an_example() -> None:
    assert error_of({}).startswith(
        "search.space is empty: name the options to vary, such as {model.latents: [16, 32"
    )


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({"model.latents": [8, -5]}, "model.latents is -5, must be at least 1"),
        ({"model.latents": {"low": -5, "high": 8}}, "model.latents is -5, must be at least 1"),
        (
            {"model.width": [30], "model.heads": [4, 8]},
            "model.heads is 4, which does not divide model.width 30",
        ),
        ({"sources.squares.weight": [-2.0]}, "source 'squares': weight is -2.0, must be above 0"),
        ({"model.image.patch": [2, 3]}, "model.image.patch is 3, must divide height 8 and width 8"),
    ],
)
def test_a_value_that_is_invalid_in_every_combination_is_rejected(space: dict[str, Any], line: str) -> None:
    assert error_of(space).startswith(line)


def test_a_value_that_is_valid_with_another_option_s_value_is_accepted() -> None:
    space = {"model.width": [30, 32], "model.heads": [3, 4]}
    assert set(parse_space(space, TRAINING)) == set(space)


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(-2, 99)
    | st.sampled_from(["", "3", "all", "1e-3"])
)
GIVEN = PLAIN | st.lists(PLAIN | st.lists(PLAIN, max_size=2) | st.just({"a": 1}), max_size=3)
RANGES = st.dictionaries(st.sampled_from(["low", "high", "log", "step", "end"]), PLAIN, max_size=4)
NAMES = (
    "model.heads", "model.share_latent_blocks", "model.share_cross_attends", "model.image.bands", "model.video.bands",
    "model.image", "optim.beta1", "train.lanes", "deepspeed.overrides", "deepspeed.zero_stage", "data.index_path",
    "sources.squares.weight", "sources.squares.modalities", "sources.squares", "sources.cubes.weight", "sources", "x",
)  # fmt: skip


@given(space=st.dictionaries(st.sampled_from(NAMES), GIVEN | RANGES, max_size=2))
def test_any_space_is_rejected_in_one_line_or_accepted(space: dict[str, Any]) -> None:
    line = ""
    try:
        distributions = [dimension.distribution for dimension in parse_space(space, TRAINING).values()]
        assert len(distributions) == len(space)
    except UserError as error:
        line = str(error)
    assert "\n" not in line


def test_several_options_of_one_part_change_together() -> None:
    values = {"model.width": 30, "model.heads": 3, "model.image.patch": 2, "sources.tones.weight": 2.0}
    changed = with_values(TRAINING, values)
    assert values_of(changed, values) == values
    assert values_of(changed, ["model.latents", "model.image.bands", "sources.squares.weight"]) == {
        "model.latents": 8, "model.image.bands": 4, "sources.squares.weight": 1.0
    }  # fmt: skip
    assert small_training() == TRAINING


def test_values_that_are_invalid_together_are_rejected() -> None:
    with pytest.raises(UserError, match=r"model\.heads is 3, which does not divide model\.width 32"):
        with_values(TRAINING, {"model.width": 32, "model.heads": 3})


def test_a_mapping_is_replaced_not_merged() -> None:
    training = replace(TRAINING, deepspeed=DeepSpeedConfig(overrides={"a": 1}))
    assert with_values(training, {"deepspeed.overrides": {"b": 2}}).deepspeed.overrides == {"b": 2}


def test_a_changed_configuration_is_read_back_from_yaml() -> None:
    training = replace(TRAINING, model=replace(TRAINING.model, video=VideoInput(height=8, width=8)))
    changed = with_values(training, {"model.video.patch": [1, 4, 4], "optim.learning_rate": 1e-5})
    read = read_run(to_yaml(changed))
    assert read.model.video == VideoInput(height=8, width=8, patch=(1, 4, 4))
    assert read.optim.learning_rate == 1e-5


def test_a_file_with_an_unknown_option_is_rejected_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^there is no option model\.latent; did you mean model\.latents\?$"):
        read_run(to_yaml(TRAINING).replace("latents:", "latent:"))


def test_values_of_returns_tuples_as_lists() -> None:
    training = replace(TRAINING, model=replace(TRAINING.model, video=VideoInput(height=16, width=16)))
    assert values_of(training, ["model.video.patch"]) == {"model.video.patch": list(VideoInput().patch)}


def test_combinations_are_complete_and_the_last_option_varies_fastest() -> None:
    space = {
        "model.latents": {"low": 2, "high": 9, "step": 3}, "optim.weight_decay": {"low": 0, "high": 0.5, "step": 0.25},
        "model.share_latent_blocks": [True, False],
    }  # fmt: skip
    found = [tuple(values.values()) for values in combinations(parse_space(space, TRAINING))]
    assert found == [
        (n, decay, shared) for n in (2, 5, 8) for decay in (0, 0.25, 0.5) for shared in (True, False)
    ]


def test_a_float_range_without_step_has_no_combinations() -> None:
    dimensions = parse_space({"optim.beta1": {"low": 0.5, "high": 0.9}}, TRAINING)
    with pytest.raises(
        UserError, match=r"optim\.beta1 is a range without step, which has infinitely many values"
    ):
        list(combinations(dimensions))


@pytest.mark.parametrize(
    ("given", "value", "drawn"),
    [
        ([4, 16], 16, 1),
        ([4, 16], 8, None),
        ([[1], [2]], [2], 1),
        ({"low": 4, "high": 16, "step": 4}, 8, 8),
        ({"low": 4, "high": 16, "step": 4}, 9, None),
        ({"low": 4, "high": 16}, 17, None),
        ({"low": 4, "high": 16}, None, None),
    ],
)
def test_a_value_in_the_dimension_survives_conversion_to_optuna(given: Any, value: Any, drawn: Any) -> None:
    dimension = (
        Choices(tuple(given)) if isinstance(given, list) else Range(4, 16, False, given.get("step"), True)
    )
    assert dimension.to_optuna(value) == drawn
    assert drawn is None or dimension.from_optuna(drawn) == value


def test_a_source_is_found_by_its_name_at_any_position() -> None:
    training = small_training(*reversed(TRAINING.sources))
    assert with_values(training, {"sources.squares.weight": 5.0}).sources == [
        TRAINING.sources[1], replace(SQUARES, weight=5.0)
    ]  # fmt: skip
