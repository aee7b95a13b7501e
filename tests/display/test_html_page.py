"""HTML pages: escaping, errors for misspelt names, and templates that are installed with the package."""

import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from perceiver_dist.display.html_page import render_page

ROOT = Path(__file__).parents[2]
BASE = "display/templates/base.html"


def test_a_page_forbids_everything_that_is_not_in_it() -> None:
    page = render_page(BASE)
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'" in page


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="is undefined"):
        render_page("search/report/templates/report.html")


def test_all_templates_are_package_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["perceiver_dist"]
    package = ROOT / "perceiver_dist"
    installed = {file for pattern in patterns for file in package.glob(pattern) if file.suffix == ".html"}
    assert installed == set(package.rglob("*.html")) != set()
