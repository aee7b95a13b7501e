"""Ray Data's scheduling loop rests while nothing happens, and not a moment otherwise."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.data import DataContext

from pipelines.pacing import RestsWithoutProgress


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was slept, in place of sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def executor(*operators: tuple[int, int]) -> SimpleNamespace:
    """What the callback sees of Ray Data: operators with blocks made and tasks begun."""
    return SimpleNamespace(
        _topology=[
            SimpleNamespace(
                metrics=SimpleNamespace(num_task_outputs_generated=blocks, num_tasks_submitted=tasks)
            )
            for blocks, tasks in operators
        ]
    )


def test_a_turn_with_a_block_or_a_task_is_followed_by_the_next_at_once(rests: list[float]) -> None:
    callback = RestsWithoutProgress()
    for blocks, tasks in [(0, 1), (1, 1), (2, 1), (2, 2)]:
        callback.on_execution_step(executor((0, 0), (blocks, tasks)))
    assert rests == []


def test_rests_grow_while_nothing_happens_and_begin_anew(rests: list[float]) -> None:
    callback = RestsWithoutProgress()
    for _ in range(10):
        callback.on_execution_step(executor((5, 2)))
    assert rests[:3] == [0.002, 0.004, 0.008]
    assert rests[-1] == 0.03
    callback.on_execution_step(executor((6, 2)))
    callback.on_execution_step(executor((6, 2)))
    assert rests[-2:] == [0.03, 0.002]


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_calls_it_and_its_operators_count_what_it_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[int, int]]] = []

    class Looks(RestsWithoutProgress):
        def on_execution_step(self, executor: Any) -> None:
            metrics = [operator.metrics for operator in executor._topology]
            seen.append([(one.num_task_outputs_generated, one.num_tasks_submitted) for one in metrics])
            super().on_execution_step(executor)

    monkeypatch.setattr(DataContext.get_current(), "custom_execution_callback_classes", [Looks])
    assert len(ray.data.range(6, override_num_blocks=3).take_all()) == 6
    blocks, tasks = seen[-1][-1]
    assert blocks >= tasks == 3
