"""Retention of checkpoints, detection of damage, and the choice of the starting point, on real files."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import written_checkpoints as written

from perceiver_dist.checkpoint.format import StoredCheckpoint, rank_file
from perceiver_dist.checkpoint.manifest import MANIFEST, LossSum, find_damage
from perceiver_dist.checkpoint.retention import CheckpointList, StartingPoint
from perceiver_dist.checkpoint.run_folder import RunFolder
from perceiver_dist.errors import UserError

FILES = (rank_file(0, 2, "writer"), rank_file(1, 2, "writer"), MANIFEST)


class Run:
    """The checkpoints of a run, and the lines shown on the screen."""

    def __init__(self, folder: Path, keep: int = 2, start_from: str | None = None) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.saved_before: list[int] = []
        self.list = CheckpointList(
            RunFolder(str(folder)), keep, start_from, self._before_manifest, self.lines.append
        )

    def _before_manifest(self) -> None:
        self.saved_before.append(RunFolder(str(self.folder)).newest_step())

    def start(self) -> StartingPoint:
        """Start a group of workers."""
        start = self.list.choose_starting_point()
        self.list.workers_started()
        return start

    def save(self, *steps: int, world_size: int = 2) -> None:
        for step in steps:
            written.save(self.list, self.folder, step, world_size)

    def names(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with checkpoints of steps 10 and 20, about to resume."""
    earlier = Run(tmp_path)
    earlier.start()
    earlier.save(10, 20)
    return Run(tmp_path)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (truncate, r"\d+ bytes of \d+|cannot be read"),
    (flip_a_bit, "other content than was written|cannot be read"),
    (Path.unlink, "missing"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_detected_and_the_previous_checkpoint_used(
    run: Run, damage: Callable[[Path], None], message: str, file: str
) -> None:
    checkpoint = run.folder / "step-00000020"
    damage(checkpoint / file)
    found = find_damage(str(checkpoint))
    assert found.startswith(f"{file}: ")
    assert run.start() == StartingPoint(1, 10, str(run.folder / "step-00000010"))
    if (file, damage) == (MANIFEST, Path.unlink):
        assert run.lines == []  # without a manifest it was no checkpoint
    else:
        assert run.lines == [f"checkpoint step-00000020 is damaged ({found}); resuming from step 10"]
        assert re.search(message, found)


@pytest.mark.parametrize("position", range(0, 600, 7))
def test_a_flipped_bit_anywhere_in_the_manifest_is_detected(run: Run, position: int) -> None:
    file = run.folder / "step-00000020" / MANIFEST
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 1 << position % 8
    file.write_bytes(content)
    assert run.start().step == 10


def test_unlogged_losses_of_all_ranks_are_added_up_and_come_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start()
    of_ranks = [{"a": LossSum(0.1, 3)}, {"b": LossSum(1 / 3, 1), "a": LossSum(0.2, 2)}]
    written.save(run.list, tmp_path, 10, losses=of_ranks)
    assert Run(tmp_path).start().unlogged_losses == {"a": LossSum(0.1 + 0.2, 5), "b": LossSum(1 / 3, 1)}
    assert find_damage(str(tmp_path / "step-00000010")) == ""


def test_a_checkpoint_without_unlogged_losses_is_that_of_older_versions(run: Run) -> None:
    manifest = json.loads((run.folder / "step-00000020" / MANIFEST).read_text())
    assert set(manifest) == {
        "steps", "samples_seen", "world_size", "zero_stage", "optimizer_steps", "files", "sha256",
    }  # fmt: skip
    assert run.start().unlogged_losses == {}


def test_an_intact_checkpoint_has_no_damage(run: Run) -> None:
    assert find_damage(str(run.folder / "step-00000020")) == ""
    assert run.start() == StartingPoint(1, 20, str(run.folder / "step-00000020"))
    assert run.lines == []


def test_a_run_whose_checkpoints_are_all_damaged_starts_from_the_beginning(run: Run) -> None:
    for step in (10, 20):
        flip_a_bit(run.folder / f"step-000000{step}" / FILES[1])
    assert run.start() == StartingPoint(1, 0, None)
    assert [line.rpartition("; ")[2] for line in run.lines] == ["resuming from the start"] * 2
    assert RunFolder(str(run.folder)).newest_step() == 0


def test_the_starting_point_is_fixed_until_the_workers_have_started(run: Run) -> None:
    first = run.list.choose_starting_point()
    flip_a_bit(run.folder / "step-00000020" / FILES[0])
    assert run.list.choose_starting_point() is first
    run.list.workers_started()
    assert run.list.start is first
    assert run.list.choose_starting_point() == StartingPoint(2, 10, str(run.folder / "step-00000010"))


def test_a_damaged_checkpoint_is_overwritten_when_training_reaches_its_step(run: Run) -> None:
    truncate(run.folder / "step-00000020" / FILES[0])
    run.start()
    assert RunFolder(str(run.folder)).newest_step() == 10
    run.save(20, world_size=3)
    assert find_damage(str(run.folder / "step-00000020")) == ""
    assert StoredCheckpoint(str(run.folder / "step-00000020")).progress.world_size == 3
    assert len(list((run.folder / "step-00000020").iterdir())) == 4


def test_the_newest_checkpoints_are_kept_and_incomplete_ones_do_not_count(run: Run) -> None:
    truncate(run.folder / "step-00000020" / FILES[0])
    (run.folder / "step-00000025").mkdir()
    run.start()
    run.save(30)
    assert run.names() == ["step-00000010", "step-00000030"]
    run.save(40, 50)
    assert run.names() == ["step-00000040", "step-00000050"]


def test_no_checkpoint_is_deleted_before_the_newer_one_is_complete(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    run.start()
    run.save(10, 20)
    assert run.saved_before == [0, 10]
    assert run.names() == ["step-00000020"]
    file = written.write_file(tmp_path, 0, 2, written.cut(written.state(30), 2)[0], 30)
    run.list.rank_saved(1, 0, False, written.progress_of(30), file)
    assert RunFolder(str(tmp_path)).newest_step() == 20


def test_files_of_a_rank_that_is_ahead_are_kept(run: Run) -> None:
    group = run.start().group
    ahead = written.write_file(run.folder, 0, 2, written.cut(written.state(40), 2)[0], 40)
    run.list.rank_saved(group, 0, False, written.progress_of(40), ahead)
    run.save(30)
    assert run.names() == ["step-00000020", "step-00000030", "step-00000040"]


def test_reports_of_an_earlier_group_are_ignored(run: Run) -> None:
    ranks = written.cut(written.state(30), 2)
    first = run.start().group
    files = [written.write_file(run.folder, rank, 2, spans, 30) for rank, spans in enumerate(ranks)]
    run.list.rank_saved(first, 0, False, written.progress_of(30), files[0])
    second = run.start().group
    run.list.rank_saved(first, 1, False, written.progress_of(30), files[1])
    run.list.rank_saved(second, 0, False, written.progress_of(30), files[0])
    assert run.list.outcome(30) is None
    assert RunFolder(str(run.folder)).newest_step() == 20
    run.list.rank_saved(second, 1, False, written.progress_of(30), files[1])
    assert (run.list.outcome(30), RunFolder(str(run.folder)).newest_step()) == ("", 30)


def test_a_failed_write_of_one_rank_abandons_the_checkpoint(run: Run) -> None:
    group = run.start().group
    file = written.write_file(run.folder, 1, 2, written.cut(written.state(30), 2)[1], 30)
    run.list.rank_saved(group, 0, False, written.progress_of(30), "No space left on device")
    run.list.rank_saved(group, 1, False, written.progress_of(30), file)
    assert run.lines == [
        "checkpoint of step 30 could not be written (No space left on device); training continues, the newest is "
        "step 20"
    ]
    assert run.names() == ["step-00000010", "step-00000020"]
    run.save(40)
    assert RunFolder(str(run.folder)).newest_step() == 40


def test_ranks_that_wait_get_the_reason_of_a_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start()
    for rank in (0, 1):
        run.list.rank_saved(1, rank, True, written.progress_of(30), "No space left on device")
    assert run.list.outcome(30) == (
        "checkpoint of step 30 could not be written (No space left on device); there is no checkpoint yet"
    )
    assert run.lines == []


def test_a_file_on_another_nodes_disk_abandons_the_checkpoint(run: Run, tmp_path: Path) -> None:
    group = run.start().group
    for rank, spans in enumerate(written.cut(written.state(30), 2)):
        file = written.write_file(run.folder if rank == 0 else tmp_path / "elsewhere", rank, 2, spans, 30)
        run.list.rank_saved(group, rank, False, written.progress_of(30), file)
    assert f"({FILES[1]} is not where the driver's node looks for it, " in run.lines[0]
    assert RunFolder(str(run.folder)).newest_step() == 20


def test_a_run_starts_from_another_runs_checkpoint_until_it_has_its_own(run: Run, tmp_path: Path) -> None:
    start = str(run.folder / "step-00000020")
    branch = Run(tmp_path / "branch", start_from=start)
    assert branch.start() == StartingPoint(1, 20, start)
    branch.save(30)
    assert branch.start() == StartingPoint(2, 30, str(tmp_path / "branch" / "step-00000030"))
    flip_a_bit(tmp_path / "branch" / "step-00000030" / FILES[0])
    assert branch.start() == StartingPoint(3, 20, start)
    assert branch.lines[0].endswith("; resuming from train.start_from")


def test_a_damaged_checkpoint_of_another_run_is_rejected(run: Run, tmp_path: Path) -> None:
    start = run.folder / "step-00000020"
    (start / FILES[1]).unlink()
    with pytest.raises(
        UserError, match=rf"train.start_from is {start}, which is damaged \({FILES[1]}: missing\)"
    ):
        Run(tmp_path / "branch", start_from=str(start)).start()
    assert (start / MANIFEST).exists()


def test_a_manifest_records_progress_and_files(run: Run) -> None:
    content = json.loads((run.folder / "step-00000020" / MANIFEST).read_text())
    assert content.items() >= {
        "steps": 20, "samples_seen": 640, "world_size": 2, "zero_stage": 2, "optimizer_steps": 19,
    }.items()  # fmt: skip
    assert [file["name"] for file in content["files"]] == list(FILES[:2])
    assert {"bytes", "sha256"} < set(content["files"][0])
