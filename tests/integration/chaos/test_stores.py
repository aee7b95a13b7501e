"""Stores and MLflow that answer wrongly at random moments: a run loses nothing, repeats nothing, and all is on record.

The seed is `CHAOS_SEED`, else drawn, and printed.
"""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import remote_run
from faulty_proxy import KINDS
from remote_run import Place, Planned
from rich.console import Console

FAULTS_PER_RUN = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with remote_run.remote_place(tmp_path_factory.mktemp("remote")) as started:
        job = started.start(started.config_of("undisturbed"))
        assert job.wait() == 0, started.screen("undisturbed")
        yield started


def disturb(place: Place, name: str, faults: list[Planned], seed: int) -> None:
    """Run with these faults, and check that nothing has come of them."""
    lines = remote_run.run_disturbed(place, place.config_of(name), faults, np.random.default_rng(seed))
    report = remote_run.compare(place, name, "undisturbed")
    Console().print(f"{name}, seed {seed}: {report}", *lines, sep="\n  ", soft_wrap=True)
    assert (report.lost, report.repeated, report.different_steps) == (0, 0, 0), place.screen(name)
    place.check_mlflow(name)


@pytest.mark.chaos
def test_some_faults_of_stores_and_mlflow_change_nothing(place: Place) -> None:
    faults: list[Planned] = [("s3", "503"), ("web", "other"), ("mlflow", "500"), ("s3", "empty")]
    disturb(place, "short", faults, seed=0)


@pytest.mark.chaos
def test_every_fault_of_stores_and_mlflow_changes_nothing(place: Place) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or np.random.default_rng().integers(1 << 31))
    random = np.random.default_rng(seed)
    faults: list[Planned] = [(where, kind) for where in ("s3", "web", "mlflow") for kind in KINDS]
    random.shuffle(faults)
    for number, first in enumerate(range(0, len(faults), FAULTS_PER_RUN)):
        disturb(place, f"chaos-{number}", faults[first : first + FAULTS_PER_RUN], seed + number)
