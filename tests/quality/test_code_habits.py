"""Code habits of the project, checked file by file."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import code_checks as checks
import pytest

ROOT = Path(__file__).parents[2]


def python_files(*folders: str) -> list[str]:
    return sorted(str(file.relative_to(ROOT)) for folder in folders for file in (ROOT / folder).rglob("*.py"))


CODE = python_files("perceiver_dist", "pipelines", "jobs")
LIBRARY = python_files("perceiver_dist", "pipelines")
MODEL = python_files("perceiver_dist/model")
PIPELINES = python_files("pipelines")
TESTS = python_files("tests")

WALL_CLOCKS = {
    "perceiver_dist/tracking/mlflow_run.py": "MLflow's times are dates",
    "pipelines/storage/web_file.py": "compared with the times of files",
    "perceiver_dist/benchmarks/start_processes.py": "compared with the kernel's time of a process",
    "perceiver_dist/benchmarks/import_probe/sitecustomize.py": "compared with that of other processes",
}
"""Files that need the time of day, and why."""
WITHOUT_WALL_CLOCK = [file for file in CODE if file not in WALL_CLOCKS]

SHARED_CONTRACT = frozenset(
    {"perceiver_dist.modalities", "perceiver_dist.errors", "perceiver_dist.range_checks"}
)
MODEL_IMPORTS = {"torch", "triton", "perceiver_dist.model", *SHARED_CONTRACT}

HABITS: list[tuple[str, list[str], Callable[[str], list[str]]]] = [
    ("functions have at most 60 lines", CODE, lambda source: checks.long_functions(source, max_lines=60)),
    ("public names have docstrings", CODE, checks.missing_docstrings),
    ("arguments are documented", CODE, checks.undocumented_arguments),
    ("raises are documented", CODE, checks.undocumented_raises),
    ("tensors have shapes", MODEL, checks.tensors_without_shapes),
    ("no print, assert or blanket except", LIBRARY, checks.forbidden_statements),
    ("durations are measured by a clock that does not jump", WITHOUT_WALL_CLOCK, checks.wall_clocks),
    ("ignores name their code", CODE + TESTS, checks.unexplained_ignores),
    ("the model imports torch only", MODEL, lambda source: checks.imports_outside(source, MODEL_IMPORTS)),
    ("pipelines run without torch", PIPELINES, lambda source: checks.imports_under(source, {"torch"})),
    ("skips give a reason", TESTS, checks.skips_without_reason),
    ("module docstrings state what the module is", CODE + TESTS, checks.question_openings),
    ("texts use standard terms", CODE, checks.private_words_in_code),
    ("texts use standard terms", TESTS, lambda source: checks.private_words_in_code(source, messages=False)),
]


@pytest.mark.parametrize(
    ("file", "check"),
    [pytest.param(file, check, id=f"{habit}: {file}") for habit, files, check in HABITS for file in files],
)
def test_habit(file: str, check: Callable[[str], list[str]]) -> None:
    offences = check((ROOT / file).read_text())
    assert offences == [], "\n".join(f"{file}:{offence}" for offence in offences)


@pytest.mark.parametrize(
    "files", [CODE, MODEL, PIPELINES, TESTS], ids=["code", "model", "pipelines", "tests"]
)
def test_there_is_something_to_check(files: list[str]) -> None:
    assert files


@pytest.mark.parametrize("file", CODE + TESTS)
def test_files_are_short_and_named_after_their_content(file: str) -> None:
    assert len((ROOT / file).read_text().splitlines()) <= 400
    assert checks.vague_names(file) == []


def test_nearly_all_functions_fit_on_a_screen() -> None:
    sizes = [size for file in CODE for size in checks.function_sizes((ROOT / file).read_text())]
    assert sum(size <= 45 for size in sizes) >= 0.95 * len(sizes)


def test_tests_are_short() -> None:
    sizes = [size for file in TESTS for size in checks.sizes_of_tests((ROOT / file).read_text())]
    assert checks.size_offences(sizes, max_median=12, max_lines=60) == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git lists the files; this copy has no repository")
def test_no_file_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    offences = {}
    for name in listed.stdout.splitlines():
        try:
            text = (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        if found := checks.machine_paths(text):
            offences[name] = found
    assert offences == {}
