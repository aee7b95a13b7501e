"""A search in the MLflow UI, on a real server and in a real browser."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import mlflow_ui
import pytest
from playwright.sync_api import Browser, Page, expect
from recorded_search import record_search

from perceiver_dist.search.study.search_record import SearchRecord

pytestmark = pytest.mark.skipif(
    mlflow_ui.find_chromium() is None and not os.environ.get("CI"),
    reason="needs a browser: apt-get install chromium",
)


class Served(NamedTuple):
    """A search, its tracking store, and the address at which the store is served."""

    search: SearchRecord
    tracking_uri: str
    address: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    storage = tmp_path_factory.mktemp("searched")
    tracking_uri = f"sqlite:///{storage}/mlflow.db"
    search = record_search(storage, tracking_uri)
    with mlflow_ui.mlflow_server(tracking_uri) as address:
        yield Served(search, tracking_uri, address)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with mlflow_ui.headless_browser() as started:
        yield started


@pytest.fixture
def trials(served: Served, browser: Browser) -> Iterator[Page]:
    """A browser page that lists the trials of the search."""
    page = mlflow_ui.empty_page(browser)
    mlflow_ui.list_trials(page, served.address, served.tracking_uri)
    yield page
    page.close()


def test_compared_trials_show_their_shape_against_their_score(served: Served, trials: Page) -> None:
    plot = mlflow_ui.plot_shape_against_score(trials)
    found = [trial for trial in served.search.trials if trial.evaluations]
    expect(trials.get_by_role("heading", name=f"Comparing {len(found)} Runs")).to_be_visible()
    expect(plot.locator(".axis-title")).to_have_text([*mlflow_ui.SHAPE, "score"])
    axes = [[trial.values[name] for trial in found] for name in mlflow_ui.SHAPE]
    axes.append([trial.score for trial in found])
    expect(plot.locator(".axis-extent-top-text")).to_have_text([f"{max(axis):.5f}" for axis in axes])
    expect(plot.locator(".axis-extent-bottom-text")).to_have_text([f"{min(axis):.5f}" for axis in axes])


def test_the_chart_view_draws_the_score_of_each_trial_over_its_steps(served: Served, trials: Page) -> None:
    chart = mlflow_ui.plot_score_per_step(trials)
    found = [trial for trial in served.search.trials if trial.evaluations]
    best_first = sorted(found, key=lambda trial: trial.score or 0.0, reverse=True)
    expect(trials.get_by_text("(score)")).to_have_text([f"{trial.name} (score)" for trial in best_first])
    expect(chart.get_by_text("Step", exact=True)).to_be_visible()
    shown = max(float(text) for text in chart.locator(".xtick").all_text_contents())
    assert shown == pytest.approx(max(trial.step for trial in best_first), rel=0.3)
