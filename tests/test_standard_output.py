"""Outputs that cannot be written: a full disk, a closed pipe, a pipe that does not block and that nobody reads."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

_WORK = """
import sys
from rich.console import Console
from perceiver_dist.config.command_line import run_job
from perceiver_dist.standard_output import lasting_output
from perceiver_dist.display.progress import ProgressLine

def main(arguments):
    console = Console()
    with lasting_output(), ProgressLine(console, seconds_between_lines=0) as line:
        for step in range(3000):
            line.update(step, 3000, 1.0, 10.0, 0.0)
            print("a warning of a library", file=sys.stderr)
        print("done")
        with open(arguments[0], "w") as file:
            file.write("results")
    return 0

run_job(main)
"""

_BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""Without a buffer, Python loses what a pipe does not take, and says nothing."""

_LOSS = "standard output cannot be written ({}); the work continues without it\n"


@contextmanager
def _full_disk() -> Iterator[int]:
    output = os.open("/dev/full", os.O_WRONLY)
    yield output
    os.close(output)


@contextmanager
def _closed_pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def _full_pipe_that_does_not_block() -> Iterator[int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    yield writer
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (_full_disk, "No space left on device"),
        (_closed_pipe, "Broken pipe"),
        (_full_pipe_that_does_not_block, "write could not complete without blocking"),
    ],
)
def test_work_continues_to_its_end_and_says_so_once(
    output: Callable[[], AbstractContextManager[int]], reason: str, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    with output() as stdout:
        job = subprocess.run(
            [sys.executable, "-c", _WORK, str(results)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            env=_BUFFERED,
        )
    assert (job.returncode, results.read_text()) == (0, "results")
    lines = job.stderr.splitlines(keepends=True)
    assert [line for line in lines if line != "a warning of a library\n"] == [_LOSS.format(reason)]


def test_work_continues_if_neither_output_can_be_written(tmp_path: Path) -> None:
    results = tmp_path / "results"
    command = [sys.executable, "-c", _WORK, str(results)]
    with _full_disk() as output:
        job = subprocess.run(command, stdout=output, stderr=output, timeout=120, check=False)
    assert (job.returncode, results.read_text()) == (0, "results")


def test_text_is_written_again_once_it_can_be(tmp_path: Path) -> None:
    code = """
import os, sys
from perceiver_dist.standard_output import lasting_output
with lasting_output():
    print("lost or late " * 5000, flush=True)
    os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 1)
    print("shown", flush=True)
"""
    with _full_disk() as output:
        command = [sys.executable, "-c", code, str(tmp_path / "log")]
        job = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    assert (job.returncode, job.stderr) == (0, _LOSS.format("No space left on device"))
    assert (tmp_path / "log").read_text().endswith("shown\n")


def test_a_job_whose_output_is_its_result_ends_in_one_line() -> None:
    code = "from perceiver_dist.config.command_line import run_job; run_job(lambda arguments: print('result') or 0)"
    with _full_disk() as output:
        job = subprocess.run([sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, text=True)
    assert (job.returncode, job.stderr) == (
        2,
        "error: standard output cannot be written: No space left on device\n",
    )
