"""Jobs submitted to the autoscaling cluster of cluster/laptop.yaml: it grows for them and shrinks after them."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import small_run
import small_search
from laptop_cluster import METRICS, LaptopCluster, changed_copy, laptop_cluster, stop_job, wait_until

from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.training.tracker.prometheus import GAUGES, RANK_GAUGES, SIGNAL_GAUGES

pytestmark = pytest.mark.runs

TRAIN_COMMAND = ("python", "jobs/train_multimodal.py")
"""The command of the documentation, without options: a configuration file is named in the cluster's environment."""
CHANGES = {
    "perceiver_dist/training/prepare.py": (": preparing data", ": preparing data as uploaded"),
    "pipelines/units/unit_maker.py": ('f"{sample.shard}/{sample.key}"', 'f"uploaded {sample.key}"'),
}
"""Changed texts by which a test knows that the driver and read tasks on other nodes run the uploaded code."""
MAX_UPLOAD_BYTES = 32 * 2**20
"""Room for the demo data, and far below the 512 MiB at which Ray 2.60 rejects a working directory."""


class Site(NamedTuple):
    """A cluster and the folder of its runs."""

    cluster: LaptopCluster
    storage: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start the cluster; its environment names the configuration for `TRAIN_COMMAND`."""
    folder = tmp_path_factory.mktemp("site")
    small_run.write_data(folder / "data")
    config = small_run.small_config(folder / "data", folder / "runs", "undisturbed")
    # A complete configuration, like the config.yaml of a run, leaves it to the environment of the cluster whether
    # workers take GPUs.
    (folder / "config.yaml").write_text(to_yaml(config))
    with laptop_cluster(folder, PERCEIVER_CONFIG=str(folder / "config.yaml")) as cluster:
        yield Site(cluster, folder / "runs")


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> dict[str, Any]:
    """Run `TRAIN_COMMAND` while the cluster grows from one node to three and back; return what was observed."""
    before = site.cluster.nodes()
    job = site.cluster.submit(*TRAIN_COMMAND)
    wait_until(lambda: site.cluster.nodes() == 3)
    wait_until(lambda: job.poll() is not None or gauges_of("undisturbed"))
    gauges = gauges_of("undisturbed")
    log, _ = job.communicate()
    wait_until(lambda: site.cluster.nodes() == 1)
    return {"before": before, "status": job.returncode, "log": log, "gauges": gauges}


def gauges_of(run: str) -> dict[str, float]:
    """Return the gauges of a run that Prometheus would scrape."""
    lines = requests.get(METRICS, timeout=30).text.splitlines()
    found = [re.match(rf'ray_(perceiver_\w+){{.*run="{run}".*}} (.+)', line) for line in lines]
    return {match[1]: float(match[2]) for match in found if match}


def result(site: Site, run: str) -> dict[str, Any]:
    """Return the content of a run's result.json."""
    found: dict[str, Any] = json.loads((site.storage / run / "result.json").read_text())
    return found


def samples(site: Site, run: str) -> dict[int, Any]:
    """Return the samples of each step of a run, by unit."""
    lines = (site.storage / run / "samples.jsonl").read_text().splitlines()
    return {entry["step"]: entry["units"] for entry in map(json.loads, lines)}


def test_a_submitted_training_makes_the_cluster_grow_and_completes(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    assert undisturbed["before"] == 1, "only the head, which runs no workers"
    assert undisturbed["status"] == 0, undisturbed["log"]
    found = result(site, "undisturbed")
    assert (found["exit"], found["steps"], found["world_size"]) == ("completed", small_run.STEPS, 2)


def test_the_streamed_log_names_the_missing_resources(undisturbed: dict[str, Any]) -> None:
    assert re.search(
        r"waiting for 3 CPUs and 2 GPUs; the cluster has \d CPUs and \d GPUs?", undisturbed["log"]
    )
    assert "Traceback" not in undisturbed["log"]


def test_prometheus_gets_the_metrics_of_the_run(undisturbed: dict[str, Any]) -> None:
    exported = [*GAUGES.values(), *RANK_GAUGES.values(), *SIGNAL_GAUGES.values()]
    on_cpu = {gauge for gauge, *_ in exported} - {"perceiver_gpu_memory_bytes"}
    assert undisturbed["gauges"].keys() == on_cpu
    assert undisturbed["gauges"]["perceiver_samples_per_second"] > 0


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A changed copy of the project, from which jobs are submitted."""
    return changed_copy(tmp_path_factory.mktemp("changed"), CHANGES)


@pytest.mark.long
def test_uploaded_code_replaces_the_installed_code(site: Site, changed: Path) -> None:
    options = ("--storage.run_name", "uploaded", "--train.steps", "4")
    job = site.cluster.submit(*TRAIN_COMMAND, *options, upload=changed)
    log, _ = job.communicate()
    assert job.returncode == 0, log
    assert "run uploaded: preparing data as uploaded" in log
    units = [unit for step in samples(site, "uploaded").values() for unit in step.values()]
    assert units
    assert all(key.startswith("uploaded ") for unit in units for key in unit)


def test_an_upload_is_small(site: Site, changed: Path) -> None:
    job = site.cluster.submit("du", "--apparent-size", "--block-size=1", "--summarize", ".", upload=changed)
    log, _ = job.communicate()
    size = re.search(r"^(\d+)\t\.$", log, re.MULTILINE)
    assert size, log
    assert 2**20 < int(size[1]) < MAX_UPLOAD_BYTES


@pytest.mark.long
def test_a_search_makes_the_cluster_grow_for_two_trials_at_once(site: Site) -> None:
    search = SearchConfig(
        space={"model.latents": [4, 8]},
        trials=2,
        sampler="grid",
        baseline=False,
        scheduler="none",
        max_concurrent=2,
        name="growing",
    )
    config = small_search.search_config(site.storage.parent / "data", site.storage, search)
    (site.storage.parent / "search.yaml").write_text(to_yaml(config))
    wait_until(lambda: site.cluster.nodes() == 1)
    job = site.cluster.submit(
        "python", "jobs/tune_perceiver.py", "--config", f"{site.storage.parent}/search.yaml"
    )
    # A trial takes 1 GPU and 3.5 CPUs, and a node has 1 GPU and 3 CPUs: one trial needs two nodes, two need three.
    wait_until(lambda: site.cluster.nodes() == 1 + 3)
    log, _ = job.communicate()
    assert job.returncode == 0, log
    assert [trial["state"] for trial in small_search.trials(site.storage / "growing")] == ["completed"] * 2
    wait_until(lambda: site.cluster.nodes() == 1)


@pytest.mark.long
def test_a_run_that_loses_a_node_ends_with_the_samples_of_an_undisturbed_one(
    site: Site, undisturbed: dict[str, Any]
) -> None:
    assert undisturbed["status"] == 0
    job = site.cluster.submit(*TRAIN_COMMAND, "--storage.run_name", "disturbed")
    wait_until(lambda: RunFolder(str(site.storage / "disturbed")).newest_step() > 0)
    site.cluster.kill_a_node()
    log, _ = job.communicate()
    assert job.returncode == 0, log
    found = result(site, "disturbed")
    assert (found["exit"], found["steps"]) == ("completed", small_run.STEPS)
    assert found["restarts"] > 0
    assert samples(site, "disturbed") == samples(site, "undisturbed")


@pytest.mark.long
def test_a_stopped_job_saves_and_ends_as_preempted(site: Site) -> None:
    job = site.cluster.submit(*TRAIN_COMMAND, "--storage.run_name", "stopped", "--train.steps", "2000")
    wait_until(lambda: RunFolder(str(site.storage / "stopped")).newest_step() > 0)
    assert job.stdout is not None
    name = re.search(r"raysubmit_\w+", "".join(job.stdout.readline() for _ in range(5)))
    assert name
    stop_job(site.cluster, name[0])
    job.communicate()
    found = result(site, "stopped")
    assert found["exit"] == "preempted"
    assert found["steps"] == RunFolder(str(site.storage / "stopped")).newest_step()


@pytest.mark.parametrize("missing", ["RAY_AUTH_TOKEN_PATH", "address"])
def test_a_wrong_address_or_a_missing_token_fails_with_one_line(
    site: Site, tmp_path: Path, missing: str
) -> None:
    environment = {**site.cluster.environment, "RAY_ADDRESS": "127.0.0.1:6379", "HOME": str(tmp_path)}
    if missing == "address":
        environment["RAY_ADDRESS"] = "127.0.0.1:9"  # the discard port, on which nothing listens
    else:
        del environment[missing]
    run = subprocess.run(
        TRAIN_COMMAND, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 2
    assert f"RAY_ADDRESS is '{environment['RAY_ADDRESS']}', where no cluster accepts this job" in run.stderr
    assert "Traceback" not in run.stderr
