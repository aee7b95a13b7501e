"""The Grafana dashboard shows what is exported, under the names by which it is exported."""

import json
import re
from pathlib import Path

import pytest
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
from ray.data._internal.execution.interfaces.op_runtime_metrics import OpRuntimeMetrics

from perceiver_dist.training.tracker.prometheus import GAUGES

PANELS = json.loads((Path(__file__).parents[2] / "cluster" / "grafana.json").read_text())["panels"]
SHOWN = {name for panel in PANELS for name in re.findall(r"ray_(\w+)", panel["targets"][0]["expr"])}


def test_every_gauge_of_a_run_has_a_panel() -> None:
    assert {gauge for gauge, _ in GAUGES.values()} <= SHOWN


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_every_panel_shows_something_that_is_exported(name: str) -> None:
    of_ray_data = {f"data_{metric.name}" for metric in OpRuntimeMetrics.get_metrics()}
    assert name in {gauge for gauge, _ in GAUGES.values()} | of_ray_data | set(METRICS_GAUGES)


def test_every_panel_says_what_it_shows_and_has_a_place_of_its_own() -> None:
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(places)
