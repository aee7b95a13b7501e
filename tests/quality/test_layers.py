"""Imports go one way, from each layer to those below it, and no folder is crowded."""

from pathlib import Path

import layer_checks as checks
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("perceiver_dist", "pipelines", "jobs")

LAYERS = [
    "perceiver_dist.errors",
    "perceiver_dist.range_checks",
    "perceiver_dist.modalities",
    "perceiver_dist.strict_json",
    "pipelines.*",  # errors, limits and random numbers
    "pipelines.storage.*",
    "pipelines.augment.*",
    "pipelines.shards.*",
    "pipelines.decode.*",
    "pipelines.units.*",
    "pipelines.demo.*",
    "pipelines.convert.*",
    "pipelines.inspection.*",
    "perceiver_dist.model.*",
    "perceiver_dist.config.*",
    "perceiver_dist.display.*",
    "perceiver_dist.tracking.*",
    "perceiver_dist.cluster.*",
    "perceiver_dist.data.*",
    "perceiver_dist.checkpoint.*",
    "perceiver_dist.metrics.*",
    "perceiver_dist.inspection.*",
    "perceiver_dist.preflight.*",
    "perceiver_dist.inference.*",
    "perceiver_dist.export.*",
    "perceiver_dist.training.zero.*",
    "perceiver_dist.training.tracker.*",
    "perceiver_dist.training.*",
    "perceiver_dist.search.study.*",
    "perceiver_dist.search.strategy.*",
    "perceiver_dist.search.report.*",
    "perceiver_dist.search.*",
    "perceiver_dist.benchmarks.*",
    "perceiver_dist",  # the facade: `perceiver_dist.load`
    "jobs.*",
]
"""From the lowest to the highest. A module imports from its own layer and from those before it."""

FACADES = ("perceiver_dist",)

MOST_FILES_IN_A_FOLDER = 20
MOST_FILES_AT_THE_ROOT = 8


def python_files(*folders: str) -> list[str]:
    return sorted(
        file.relative_to(ROOT).as_posix() for folder in folders for file in (ROOT / folder).rglob("*.py")
    )


@pytest.fixture(scope="module")
def imports() -> checks.Imports:
    files = python_files(*PACKAGES)
    return checks.imports_among({checks.module_name(file): (ROOT / file).read_text() for file in files})


def test_there_is_something_to_check(imports: checks.Imports) -> None:
    assert sum(len(targets) for targets in imports.values()) > len(imports)


def test_imports_go_from_higher_layers_to_lower_ones(imports: checks.Imports) -> None:
    assert checks.layer_offences(imports, LAYERS) == []


def test_no_modules_import_each_other_in_a_circle(imports: checks.Imports) -> None:
    assert checks.circles(imports) == []


def test_no_folders_import_each_other_in_a_circle(imports: checks.Imports) -> None:
    assert checks.circles(checks.folder_edges(imports, FACADES)) == []


def test_no_folder_is_crowded() -> None:
    assert checks.wide_folders(python_files(*PACKAGES, "tests"), MOST_FILES_IN_A_FOLDER) == []
    at_the_root = [file for file in python_files("perceiver_dist") if file.count("/") == 1]
    assert checks.wide_folders(at_the_root, MOST_FILES_AT_THE_ROOT) == []


def test_no_two_files_of_a_package_have_the_same_name() -> None:
    assert checks.repeated_names(python_files(*PACKAGES, "tests"), ("__init__.py", "conftest.py")) == []
