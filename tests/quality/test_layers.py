"""Layers of the project: imports go from each layer to those below it, without cycles, and no folder is crowded."""

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
    "perceiver_dist.standard_output",
    "perceiver_dist.termination_signals",
    "pipelines.*",  # errors, limits and random numbers
    "pipelines.storage.*",
    "pipelines.augment.*",
    "pipelines.shards.*",
    "pipelines.decode.*",
    "pipelines.units.*",
    "pipelines.demo.*",
    "pipelines.convert.*",
    "pipelines.inspection.*",
    "perceiver_dist.model.kernels.*",
    "perceiver_dist.model.*",
    "perceiver_dist.model.observation.*",
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
    "perceiver_dist.training.augment.*",
    "perceiver_dist.training.zero.*",
    "perceiver_dist.training.signals.*",
    "perceiver_dist.training.liveness.*",
    "perceiver_dist.training.tracker.*",
    "perceiver_dist.training.*",
    "perceiver_dist.search.study.*",
    "perceiver_dist.search.strategy.*",
    "perceiver_dist.search.report.*",
    "perceiver_dist.search.*",
    "perceiver_dist.benchmarks.import_probe.*",
    "perceiver_dist.benchmarks.*",
    "perceiver_dist.benchmarks.data.*",
    "perceiver_dist",  # the facade: `perceiver_dist.load`
    "jobs.*",
]
"""From the lowest to the highest. A module imports from its own layer and from those before it."""

FACADES = ("perceiver_dist",)
"""Packages that re-export names of their subfolders, which is no cycle."""

MAX_FILES_IN_A_FOLDER = 20
"""A reader can take in a list of this length; comparable projects have up to 22 files in their widest folder."""
MAX_FILES_AT_THE_ROOT = 8
"""Files that all parts share; everything else belongs to a part."""


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


def test_there_are_no_import_cycles_of_modules(imports: checks.Imports) -> None:
    assert checks.cycles(imports) == []


def test_there_are_no_import_cycles_of_folders(imports: checks.Imports) -> None:
    assert checks.cycles(checks.folder_edges(imports, FACADES)) == []


def test_no_folder_is_crowded() -> None:
    assert checks.crowded_folders(python_files(*PACKAGES, "tests"), MAX_FILES_IN_A_FOLDER) == []
    at_the_root = [file for file in python_files("perceiver_dist") if file.count("/") == 1]
    assert checks.crowded_folders(at_the_root, MAX_FILES_AT_THE_ROOT) == []


def test_file_names_are_unique_within_a_package() -> None:
    assert checks.repeated_names(python_files(*PACKAGES, "tests"), ("__init__.py", "conftest.py")) == []
