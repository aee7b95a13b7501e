"""A training in odd surroundings completes, or ends with status 2 and one line that says what to do."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import write_data
from surroundings import ALL, train_in, write_run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with shards that every user can read."""
    folder = tmp_path_factory.mktemp("shards")
    write_data(folder, train=16, evaluation=4)
    for part in (folder, *folder.parents[:2]):
        part.chmod(0o755)
    return folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return an empty folder that every user can write, with a short path."""
    with tempfile.TemporaryDirectory(prefix="odd", ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o777)
        yield Path(path)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ALL)
def test_a_training_completes_or_says_what_to_do(name: str, folder: Path, shards: Path) -> None:
    surroundings = ALL[name]
    if not surroundings.available:
        pytest.skip("needs root, setpriv, unshare, and a Python that other users can run")
    write_run(folder, shards)
    done = train_in(surroundings, folder)
    shown = done.stdout + done.stderr
    if surroundings.line:
        assert done.returncode == 2, shown
        [line] = done.stderr.splitlines()
        assert line.startswith("error: " + surroundings.line.replace("{folder}", str(folder))), line
    else:
        assert (done.returncode, done.stderr) == (0, ""), shown
        assert surroundings.said.replace("{folder}", str(folder)) in shown
