"""Tests of writing a conversion: it resumes after a stop, and never mixes with another conversion."""

from dataclasses import replace
from pathlib import Path

import pytest
from converted_shards import shades, write_tree, written

from perceiver_dist.errors import UserError
from pipelines.convert import Conversion, convert_folder, write_conversion

pytestmark = pytest.mark.usefixtures("ray_cluster")


class StoppedError(Exception):
    """Stops a conversion."""


def planned(folder: Path, seed: int = 0) -> Conversion:
    paths = [f"{label}/{i}.png" for label in "ab" for i in range(10)]
    tree = folder / "tree" if (folder / "tree").exists() else write_tree(folder / "tree", *paths)
    return convert_folder(tree, str(folder / "out"), samples_per_shard=2, seed=seed)


def test_a_stopped_conversion_resumes(tmp_path: Path) -> None:
    conversion = planned(tmp_path)
    shards = [tmp_path / "out" / part.name for part in conversion.parts]

    def stop_after_three(done: int, _of: int) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_conversion(conversion, stop_after_three)
    assert not (tmp_path / "out" / "classes.json").exists()
    # Tasks in flight may still write shards. Without the last one, at least one shard is missing.
    shards[-1].unlink(missing_ok=True)
    existing = [shard for shard in shards if shard.exists()]
    assert 3 <= len(existing) < 10
    times = {shard: shard.stat().st_mtime_ns for shard in existing[:3]}
    seen: list[tuple[int, int]] = []
    write_conversion(planned(tmp_path), lambda done, of: seen.append((done, of)))
    assert seen[-1] == (10, 10)
    assert seen[0][0] >= 3
    assert {shard: shard.stat().st_mtime_ns for shard in times} == times
    source = conversion.source
    assert len(shades(source.train_shards) | shades(source.eval_shards)) == 20


def test_shards_are_deterministic(tmp_path: Path) -> None:
    conversion = planned(tmp_path)
    written(conversion)
    again = replace(conversion, out=str(tmp_path / "again"))
    written(again)
    for part in conversion.parts:
        assert (tmp_path / "out" / part.name).read_bytes() == (tmp_path / "again" / part.name).read_bytes()


def test_a_folder_of_another_conversion_is_rejected(tmp_path: Path) -> None:
    written(planned(tmp_path))
    with pytest.raises(UserError, match=r"out: holds shards of another conversion"):
        written(planned(tmp_path, seed=1))
    (tmp_path / "out" / "conversion.json").unlink()
    with pytest.raises(UserError, match=r"out: already holds eval-000000.tar, of no recorded conversion"):
        written(planned(tmp_path))


def test_a_removed_file_is_named(tmp_path: Path) -> None:
    conversion = planned(tmp_path)
    (tmp_path / "tree" / "a" / "3.png").unlink()
    with pytest.raises(UserError, match=r"a/3.png: cannot be read \(No such file or directory\)"):
        written(conversion)


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_shards_can_be_written_to_a_uri(tmp_path: Path, scheme: str) -> None:
    """The scheme `local` belongs to fsspec, and takes the path of a remote store."""
    conversion = planned(tmp_path)
    written(conversion)
    written(replace(conversion, out=f"{scheme}://{tmp_path}/store"))
    assert {path.name for path in (tmp_path / "store").iterdir()} == {
        path.name for path in (tmp_path / "out").iterdir()
    }
    for part in conversion.parts:
        assert (tmp_path / "store" / part.name).read_bytes() == (tmp_path / "out" / part.name).read_bytes()


def test_samples_per_shard_must_be_positive(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", "a/x.png", "b/x.png")
    with pytest.raises(UserError, match="samples_per_shard is 0, must be at least 1"):
        convert_folder(tmp_path / "tree", str(tmp_path / "out"), samples_per_shard=0)
