"""Two nodes of a Ray cluster in two network namespaces: cuts, losses, delays and little bandwidth between them."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import disturbed_run
import network
import numpy as np
import pytest
import small_run
from disturbed_run import STEPPING, Report
from faulty_proxy import wait
from network import ADDRESSES, INTERFACE, Quality, Wire
from rich.console import Console

from perceiver_dist.config.command_line import to_yaml
from perceiver_dist.config.run_config import RunConfig

PORT = 6399
STEPS = 1000
"""Long enough for a run to meet its five faults."""
_MAX_SECONDS_BETWEEN_FAULTS = 20.0
"""About the time in which workers start, so that faults hit both starting and training workers."""

FAULTS: dict[str, tuple[Quality, float, float]] = {
    "short cut": (Quality(cut=True), 3, 8),
    "long cut": (Quality(cut=True), 20, 40),
    "loss 5%": (Quality(loss=0.05), 10, 30),
    "delay 200 ms": (Quality(delay=0.2), 10, 30),
    "1 Mbit/s": (Quality(bits_per_second=1e6), 10, 30),
}
"""What happens to the network, and for how many seconds at least and at most."""


class TwoNodes:
    """A head in one namespace and a node in the other, which is started again when Ray has given it up."""

    def __init__(self, wire: Wire, folder: Path) -> None:
        self.wire = wire
        self.restarts = -1
        self._ended = threading.Event()
        self._folder = folder
        # gloo would take the address of the host's name, which both namespaces share.
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "GLOO_SOCKET_IFNAME": INTERFACE,
            # Nobody else can reach the namespaces.
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"{ADDRESSES[0]}:{PORT}",
        }
        self._head = self._start(0, "--head", f"--port={PORT}", "--num-cpus=4", "--include-dashboard=false")
        self._node: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_node, daemon=True)
        self._thread.start()

    def wait_until_complete(self) -> None:
        """Return when both nodes have joined."""
        ray = str(Path(sys.executable).with_name("ray"))
        command = self.wire.inside(0, ray, "status", "--address", self.environment["RAY_ADDRESS"])
        while (
            "/2.0 GPU"
            not in subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False
            ).stdout
        ):
            assert self._head.poll() is None, (self._folder / "node0.txt").read_text()
            wait(1)

    def _start(self, end: int, *options: str) -> "subprocess.Popen[bytes]":
        ray = str(Path(sys.executable).with_name("ray"))
        address = (f"--node-ip-address={ADDRESSES[end]}", "--num-gpus=1", "--block")
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        with (self._folder / f"node{end}.txt").open("a") as output:
            return subprocess.Popen(
                self.wire.inside(end, ray, "start", *options, *address),
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _keep_node(self) -> None:
        while not self._ended.wait(1):
            if self._node is None or self._node.poll() is not None:
                if self._node is not None:
                    _end(self._node)
                self._node = self._start(1, f"--address={ADDRESSES[0]}:{PORT}", "--num-cpus=1")
                self.restarts += 1

    def run(self, config: RunConfig) -> "subprocess.Popen[bytes]":
        """Start a job on the head."""
        storage, name = Path(config.storage.path), config.storage.run_name
        file = storage / f"{name}.yaml"
        file.write_text(to_yaml(config))
        with (storage / f"{name}.txt").open("a") as screen:
            return subprocess.Popen(
                self.wire.inside(0, sys.executable, "-u", "jobs/train_multimodal.py", "--config", str(file)),
                env=self.environment,
                stdout=screen,
                stderr=screen,
                start_new_session=True,
            )

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for process in (self._node, self._head):
            if process is not None:
                _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a node with all its processes."""
    process.terminate()
    process.wait()


class Fault(NamedTuple):
    """What happens to the network: what it is called, how bad it is, after how many seconds, and for how many."""

    name: str
    quality: Quality
    after: float
    seconds: float


class Cluster(NamedTuple):
    """The nodes, a folder for runs, and the shards."""

    nodes: TwoNodes
    storage: Path
    data: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := network.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("network")
    small_run.write_data(folder / "data")
    with Wire(seed=0) as wire:
        nodes = TwoNodes(wire, folder)
        nodes.wait_until_complete()
        yield Cluster(nodes, folder, folder / "data")
        nodes.close()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Path:
    config = disturbed_run.config_of(cluster.data, cluster.storage, "undisturbed", 2, steps=STEPS)
    assert cluster.nodes.run(config).wait() == 0, disturbed_run.screen_of(config)
    return disturbed_run.folder_of(config)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
def test_bad_networks_at_random_moments_change_nothing(
    cluster: Cluster, undisturbed: Path, seed: int
) -> None:
    random = np.random.default_rng(seed)
    faults = []
    for name in random.permutation(list(FAULTS)):
        quality, least, most = FAULTS[name]
        after, seconds = random.uniform(0, _MAX_SECONDS_BETWEEN_FAULTS), random.uniform(least, most)
        faults.append(Fault(name, quality, after, seconds))
    check(cluster, undisturbed, f"seed{seed}", faults)


@pytest.mark.chaos
def test_nodes_that_are_cut_off_for_two_minutes_change_nothing(cluster: Cluster, undisturbed: Path) -> None:
    check(cluster, undisturbed, "cut", [Fault("cut", Quality(cut=True), after=0, seconds=120)])


def check(cluster: Cluster, undisturbed: Path, name: str, faults: Sequence[Fault]) -> None:
    """Run to the end while the faults come in order from the first step on, and compare with an undisturbed run."""
    config = disturbed_run.config_of(cluster.data, cluster.storage, name, 2, steps=STEPS)
    cluster.nodes.wait_until_complete()
    job = cluster.nodes.run(config)
    restarts = cluster.nodes.restarts
    while not STEPPING.search(disturbed_run.screen_of(config)):
        assert job.poll() is None, disturbed_run.screen_of(config)
        wait(0.1)
    for fault in faults:
        wait(fault.after)
        if job.poll() is not None:
            break
        dropped, passed = cluster.nodes.wire.dropped, cluster.nodes.wire.passed
        cluster.nodes.wire.quality = fault.quality
        wait(fault.seconds)
        cluster.nodes.wire.quality = Quality()
        dropped, passed = cluster.nodes.wire.dropped - dropped, cluster.nodes.wire.passed - passed
        Console().print(f"{fault.name}: {fault.seconds:.0f} s, {dropped} packets dropped, {passed} passed on")
    assert job.wait() == 0, disturbed_run.screen_of(config)
    report = Report()
    disturbed_run.compare(report, disturbed_run.folder_of(config), undisturbed)
    Console().print(f"{name}: the node was started again {cluster.nodes.restarts - restarts} times, {report}")
    assert (report.lost, report.repeated, report.different_steps) == (0, 0, 0)
