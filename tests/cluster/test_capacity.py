"""Tests of waiting for cluster capacity: the messages meanwhile, and the error when the wait cannot end."""

from dataclasses import replace

import pytest
import ray
from ranks import CONFIG
from ray.util.placement_group import placement_group, remove_placement_group

from perceiver_dist.cluster import capacity
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError


def config_for(workers: int, **train: object) -> RunConfig:
    """Return a run whose workers have half a CPU each. Its reader and an evaluation take two."""
    options = {"num_workers": workers, "lanes": workers, "cpus_per_worker": 0.5, **train}
    return replace(CONFIG, train=replace(CONFIG.train, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "enough"),
    [
        ([{"CPU": 3.0}, {"CPU": 1.0, "GPU": 1.0}], True),
        ([{"CPU": 4.0}, {"GPU": 1.0}], False),
        ([{"CPU": 1.0, "GPU": 1.0}], False),
        ([], False),
    ],
)
def test_bundles_fit_if_there_is_enough_in_total_and_a_large_enough_node_for_each(
    nodes: list[dict[str, float]], enough: bool
) -> None:
    assert capacity.fits([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], nodes) == enough


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_fits_starts_without_a_message() -> None:
    messages: list[str] = []
    capacity.wait_for_capacity(config_for(2), "run 'demo'", messages.append)
    assert messages == []


@pytest.mark.usefixtures("ray_cluster")
def test_the_reserved_capacity_is_released() -> None:
    for _ in range(3):
        capacity.wait_for_capacity(config_for(6), "run 'demo'", lambda _: None)


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_too_small_fails_with_what_it_has_and_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity, "_MAX_WAIT_SECONDS", 0.0)
    with pytest.raises(
        UserError,
        match=r"too small: training and reading need 3 CPUs and 2 GPUs, it has 6 CPUs and 0 GPUs, and no node is being "
        r"added; let it grow further \(max_workers in its YAML\), or lower train.num_workers",
    ):
        capacity.wait_for_capacity(config_for(2, gpus_per_worker=1), "run 'demo'", lambda _: None)


@pytest.mark.usefixtures("ray_cluster")
def test_waiting_for_another_job_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_MAX_WAIT_SECONDS", 1.0)
    other = placement_group([{"CPU": 4.0}], name="run 'other' (workers)")
    ray.get(other.ready())
    messages: list[str] = []

    def report(text: str) -> None:
        messages.append(text)
        remove_placement_group(other)

    capacity.wait_for_capacity(config_for(2), "run 'demo'", report)
    assert messages == [
        "waiting for 3 CPUs; the cluster has 6 CPUs, free: 2 CPUs; run 'other' (workers) holds 4 CPUs"
    ]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("options", "hints"), [({}, 1), ({"device": "cpu"}, 0), ({"gpus_per_worker": 0}, 0)])
def test_training_on_cpus_is_reported_if_the_cluster_may_add_gpus(
    options: dict[str, object], hints: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    messages: list[str] = []
    capacity.wait_for_capacity(config_for(2, **options), "run 'demo'", messages.append)
    line = "training on CPUs, since the cluster has no GPUs now; if it can add some, set train.gpus_per_worker to 1"
    assert messages == [line] * hints


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("options", "gpus", "device"),
    [
        ({}, 0, "cpu"),
        ({"device": "cuda"}, 1, "cuda"),
        ({"gpus_per_worker": 1}, 1, "cuda"),
        ({"gpus_per_worker": 1, "device": "cpu"}, 1, "cpu"),
    ],
)
def test_gpus_are_requested_before_there_are_any(options: dict[str, object], gpus: int, device: str) -> None:
    config = config_for(2, **options)
    assert (capacity.gpus_per_worker(config), capacity.device_type(config)) == (gpus, device)
