"""Grafana dashboard: its panels use the names of exported metrics, and cover all metrics of a run."""

import json
import re
from pathlib import Path

import pytest
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
from ray.data._internal.execution.interfaces.op_runtime_metrics import OpRuntimeMetrics

from perceiver_dist.training.tracker.prometheus import GAUGES, RANK_GAUGES, SIGNAL_GAUGES

PANELS = json.loads((Path(__file__).parents[2] / "cluster" / "grafana.json").read_text())["panels"]
SHOWN = {name for panel in PANELS for name in re.findall(r"ray_(\w+)", panel["targets"][0]["expr"])}


EXPORTED = {gauge for gauge, *_ in [*GAUGES.values(), *RANK_GAUGES.values(), *SIGNAL_GAUGES.values()]}


def test_every_metric_of_a_run_has_a_panel() -> None:
    assert EXPORTED <= SHOWN


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_every_panel_uses_an_exported_metric(name: str) -> None:
    of_ray_data = {f"data_{metric.name}" for metric in OpRuntimeMetrics.get_metrics()}
    assert name in EXPORTED | of_ray_data | set(METRICS_GAUGES)


def test_every_panel_has_a_title_a_description_and_its_own_position() -> None:
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(positions)) == len(positions)
