"""README and docs, checked against the repository that they describe."""

import importlib
import re
from argparse import ArgumentParser
from functools import cache
from pathlib import Path

import doc_checks as checks
import pytest
from code_checks import private_words

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
]


def all_options(parser: ArgumentParser) -> set[str]:
    """Return the option strings of a parser and of its subcommands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found = found.union(*(all_options(sub) for sub in action.choices.values()))
    return found


@cache
def options_of(job: str) -> set[str]:
    """Return the option strings of a job."""
    if not (ROOT / job).exists():
        raise FileNotFoundError(job)
    return all_options(importlib.import_module(job.removesuffix(".py").replace("/", ".")).build_parser())


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(ROOT)
    return ROOT / str(request.param)


def test_links_are_valid(page: Path) -> None:
    assert checks.broken_links(page.read_text(), page) == []


def test_paths_exist(page: Path) -> None:
    assert checks.missing_paths(page.read_text(), ROOT) == []


def test_commands_and_their_options_exist(page: Path) -> None:
    assert checks.unknown_targets(page.read_text(), (ROOT / "Makefile").read_text()) == []
    assert checks.unknown_options(page.read_text(), options_of) == []


def test_pages_use_standard_terms(page: Path) -> None:
    offences = private_words(page.read_text())
    assert offences == [], "\n".join(f"{page.name}:{offence}" for offence in offences)


def test_the_readme_is_short_and_starts_with_a_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert checks.first_command_line(text) < 30


def test_the_readme_has_a_table_of_contents() -> None:
    assert checks.sections_missing_in_contents((ROOT / "README.md").read_text()) == []


def test_contributing_and_hooks_name_what_make_lint_runs() -> None:
    commands = checks.recipe((ROOT / "Makefile").read_text(), "lint")
    assert commands
    assert checks.hook_commands((ROOT / ".pre-commit-config.yaml").read_text()) == commands
    tools = {Path(command.split()[0]).name for command in commands}
    [line] = re.findall(r"^\| `make lint` \|.*$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert [tool for tool in sorted(tools) if tool not in line] == []


def test_a_batch_can_be_followed() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert checks.trace_offences(text, ROOT, max_files=8, max_lines=2500) == []
