"""Serve the MLflow UI and look at a search in it with a headless browser.

The screenshot in the documentation is made by

    .venv/bin/python tests/integration/mlflow_ui.py sqlite:///runs/mlflow.db docs/mlflow-ui.png
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from typing import TextIO
from urllib.parse import urlencode

from mlflow.tracking import MlflowClient
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from perceiver_dist.tracking.mlflow_environment import DEFAULT_EXPERIMENT
from perceiver_dist.tracking.mlflow_store import absolute_tracking_uri

SHAPE = ["model.latents", "model.width", "model.cross_attends"]
"""Parameters that the score is plotted against."""

_MAX_WAIT_SECONDS = 240
"""Limit for the server's start and for each click: seconds on an idle machine, minutes on one with busy cores."""
_OPENED_BEFORE = 'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")'
"""On a browser's first visit MLflow opens a chat that covers a third of the page."""
_TRIALS_BEST_FIRST = {
    "searchFilter": "tags.kind = 'trial' and metrics.score >= 0",
    "orderByKey": "metrics.`score`",
    "orderByAsc": "false",
}
"""MLflow's parallel coordinates draw a run without a score as if it had the best one, so such trials are left out. So
is the search itself: MLflow folds trials under it unless they are sorted by something."""
_NO_CHAT = "[data-assistant-ui] { display: none }"


def find_chromium() -> str | None:
    """Return the path of an installed browser that Playwright can drive; Playwright's own would need a download."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def mlflow_server(tracking_uri: str) -> Iterator[str]:
    """Serve the UI of a tracking store while the context is open; yields its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host, port = listener.getsockname()
    command = [sys.executable, "-m", "mlflow", "server", f"--host={host}", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri={absolute_tracking_uri(tracking_uri)}", "--no-serve-artifacts"]
    # Without five processes for evaluations of language models.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "output.txt").open("w+") as output:
        # In its own session, so that the server's child processes are killed with it.
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            _wait_until_healthy(f"{host}:{port}", server, output)
            yield f"http://{host}:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextmanager
def headless_browser() -> Iterator[Browser]:
    """Run a headless browser while the context is open."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def empty_page(browser: Browser) -> Page:
    """Open a page that knows nothing of what other pages have stored."""
    page = browser.new_page(viewport={"width": 1000, "height": 640}, device_scale_factor=1.4, locale="en-US")
    page.set_default_timeout(_MAX_WAIT_SECONDS * 1000)
    page.add_init_script(_OPENED_BEFORE)
    expect.set_options(timeout=_MAX_WAIT_SECONDS * 1000)
    return page


def list_trials(page: Page, address: str, tracking_uri: str) -> None:
    """Open the experiment and list the trials that have a score, without the search that they belong to."""
    experiment = MlflowClient(tracking_uri).get_experiment_by_name(DEFAULT_EXPERIMENT)
    assert experiment is not None
    page.goto(f"{address}/#/experiments/{experiment.experiment_id}/runs?{urlencode(_TRIALS_BEST_FIRST)}")
    page.get_by_role("button", name="Toggle sidebar").click()
    page.get_by_role("link", name="trial-").first.wait_for()


def plot_shape_against_score(page: Page) -> Locator:
    """Compare all listed trials; returns the plot of parallel coordinates."""
    page.get_by_label("Select all runs").check()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("button", name="Clear All").click()
    _choose(page, page.get_by_role("combobox").first, SHAPE)
    _choose(page, page.get_by_role("combobox").last, ["score"])
    return page.locator(".parcoords")


def plot_score_per_step(page: Page) -> Locator:
    """Plot the score of all listed trials over the steps; returns the chart."""
    page.goto(f"{page.url}&compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("score")
    return page.locator(".js-plotly-plot")


def take_screenshot(tracking_uri: str, path: Path) -> None:
    """Write a PNG that compares the trials of all searches in a store as parallel coordinates."""
    with mlflow_server(tracking_uri) as address, headless_browser() as browser:
        page = empty_page(browser)
        list_trials(page, address, tracking_uri)
        expect(plot_shape_against_score(page).locator(".axis-title")).to_have_text([*SHAPE, "score"])
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        page.screenshot(path=temporary, style=_NO_CHAT)
        temporary.replace(path)


def _wait_until_healthy(address: str, server: "subprocess.Popen[bytes]", output: TextIO) -> None:
    deadline = time.monotonic() + _MAX_WAIT_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        connection = HTTPConnection(address, timeout=_MAX_WAIT_SECONDS)
        try:
            connection.request("GET", "/health")
            assert connection.getresponse().status == HTTPStatus.OK
            return
        except ConnectionError:
            Event().wait(0.1)
        finally:
            connection.close()
    output.seek(0)
    raise TimeoutError(f"no MLflow server answers at {address}: {output.read()}")


def _choose(page: Page, field: Locator, names: Sequence[str]) -> None:
    """Select entries of a virtual list, which keeps only the visible ones in the page: scroll until each appears."""
    field.click()
    entries = page.locator(".rc-virtual-list:visible")
    for name in names:
        entry = entries.get_by_title(name, exact=True)
        entries.hover()
        deadline = time.monotonic() + _MAX_WAIT_SECONDS
        while not entry.is_visible() and time.monotonic() < deadline:
            page.mouse.wheel(0, 100)
        entry.click()
    page.keyboard.press("Escape")


if __name__ == "__main__":
    take_screenshot(sys.argv[1], Path(sys.argv[2]))
