"""Tests that docs/configuration.md is up to date, and that the dataclasses document every option."""

import dataclasses

import pytest

from jobs.write_reference_page import PAGE, reference_page
from perceiver_dist.config.options import OptionGroup, documented_fields, option_groups, value_types
from perceiver_dist.config.run_config import RunConfig

PARTS = option_groups(RunConfig)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference_page(), "run `make docs`"


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.config.__name__)
def test_exactly_the_fields_are_documented(part: OptionGroup) -> None:
    meanings = documented_fields(part.config)
    assert sorted(meanings) == sorted(field.name for field in dataclasses.fields(part.config))
    assert all(meaning.endswith(".") for meaning in meanings.values())


def test_the_tree_has_these_parts() -> None:
    names = ["model", "model.image", "model.audio", "model.video", "model.points"]
    names += ["sources", "sources.augment", "optim", "train", "train.num_workers"]
    assert [part.name for part in PARTS] == [
        "",
        *names,
        "deepspeed",
        "data",
        "data.limits",
        "tracking",
        "storage",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train.steps", "int"),
        ("train.precision", "one of fp32, bf16"),
        ("model.video.patch", "tuple[int, int, int]"),
        ("model.image.max_frequency", "float or null"),
        ("model.image", "mapping or null"),
        ("sources", "list of mappings"),
        ("sources.class_names", "list[str]"),
        ("deepspeed.overrides", "dict[str, Any]"),
        ("optim", "mapping"),
    ],
)
def test_types_are_described_in_terms_of_yaml(name: str, expected: str) -> None:
    assert value_types()[name] == expected


@pytest.mark.parametrize(
    "row",
    [
        "| `train.steps` | int | `1000` | Optimizer steps of the whole run; every step learns from one source. |",
        "| `model.video.patch` | tuple[int, int, int] | `[2, 4, 4]` | Frames, rows and columns of one token;",
        "| `sources.name` | str | required | Short name;",
        "| `storage.run_name` | str or null | `null` | Name of the run and its folder.",
    ],
)
def test_a_row_has_option_type_default_and_meaning(row: str) -> None:
    assert f"\n{row}" in reference_page()
