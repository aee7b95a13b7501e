"""Asynchronous saving: the copy is consistent, and a failed write leaves no file."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked_processes
import pytest
import ranks
import saving
import torch

from perceiver_dist.benchmarks.checkpoint_stall import measure_saves
from perceiver_dist.checkpoint.format import write_rank_file
from perceiver_dist.checkpoint.run_folder import RunFolder
from pipelines.storage.files import reason_of

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saving")


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[str, Any]:
    work = [(f"stage {stage}", saving.save_while_stepping, stage) for stage in STAGES]
    return ranks.run_ranks(1, folder, *work)


@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizer_waits_for_the_copy_and_not_for_the_write(saved: dict[str, Any], stage: int) -> None:
    assert all(saved[f"stage {stage}"].values()), saved[f"stage {stage}"]


def test_the_benchmark_alternates_both_kinds_of_saving(tmp_path: Path) -> None:
    with forked_processes.pool_of_one() as process:
        saves = process.apply(measure_saves, (str(tmp_path), 2, ranks.CONFIG))
    assert [save.synchronous for save in saves] == [False, True, False, True]
    assert {save.bytes for save in saves} == {file.stat().st_size for file in tmp_path.glob("step-*/rank-*")}
    assert RunFolder(str(tmp_path)).newest_step() == 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    if os.getuid() != 0:
        pytest.skip("only root may mount a small file system")
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_reported_and_the_partial_file_removed(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as failure:
        write_rank_file(str(small_disk / "step-00000010" / "rank"), b"", torch.zeros(1 << 20))
    assert reason_of(failure.value) == "No space left on device"
    assert list((small_disk / "step-00000010").iterdir()) == []
