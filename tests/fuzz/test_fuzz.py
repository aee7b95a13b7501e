"""Fuzzing: every damaged file is decoded to the right shape or quarantined with a reason, and nothing hangs."""

import resource
import sys
from pathlib import Path

import pytest
from campaign import (
    damage_samples,
    damage_shards,
    maker_of,
    outcomes,
    peak_memory,
    table,
    units_of,
    write_damaged,
)
from damage import DAMAGES
from valid_files import valid_files

from pipelines.units.block_order import SingleUnits
from pipelines.units.plan import EvaluationPlan
from pipelines.units.unit_datasource import stored_blocks, unit_dataset

MAX_BYTES = 1500 * 2**20
"""Max peak memory of a child process; allocating what a damaged header claims would exceed it."""


MEDIA = [kind for kind in valid_files() if kind != "json"]


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Outcomes by key of the files that would be damaged, decoded by one child process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("campaign.damaged_file", lambda data, *_: data)
        shards = write_damaged(tmp_path_factory.mktemp("undamaged"), MEDIA, each=1)
        return outcomes(units_of(maker_of(shards)))


@pytest.mark.parametrize("kind", MEDIA)
def test_files_are_valid_before_they_are_damaged(undamaged: dict[str, str], kind: str) -> None:
    found = [reason for key, reason in undamaged.items() if key.startswith(f"{kind}/")]
    assert found == [""] * len(DAMAGES)


def test_some_damaged_files_are_accounted_for(tmp_path: Path) -> None:
    # The peak is over all child processes of this session, those of other tests too. They are forked, so the memory of
    # this process, which other tests have used, counts as theirs.
    before, inherited = peak_memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = damage_samples(tmp_path, each=1) | damage_shards(tmp_path, each=1)
    assert {tally.files for tally in report.values()} == {1}
    assert len(report) == (len(valid_files()) + 1) * len(DAMAGES)
    assert peak_memory() <= max(before, inherited + MAX_BYTES)


@pytest.mark.fuzz
def test_thousands_of_damaged_files_are_accounted_for(tmp_path: Path) -> None:
    report = damage_samples(tmp_path, each=30) | damage_shards(tmp_path, each=20)
    sys.stdout.write(f"\n{table(report)}\npeak memory of a process: {peak_memory() / 2**20:.0f} MiB\n")
    assert sum(tally.files for tally in report.values()) == (30 * len(valid_files()) + 20) * len(DAMAGES)
    assert peak_memory() < MAX_BYTES


@pytest.mark.fuzz
@pytest.mark.usefixtures("ray_cluster")
def test_damaged_files_have_the_same_outcome_in_a_ray_dataset(tmp_path: Path) -> None:
    maker = maker_of(write_damaged(tmp_path, MEDIA, each=10))
    assert isinstance(maker.plan, EvaluationPlan)
    name = maker.source.name
    dataset = unit_dataset({name: maker}, SingleUnits(name, 0, maker.plan.units), maker.data)
    assert outcomes(block.unit(0) for block in stored_blocks(dataset, 1)) == outcomes(units_of(maker))
