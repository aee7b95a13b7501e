"""Measuring in a process of its own, so that nothing has another's memory, threads or caches."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from rich.console import Console

from perceiver_dist.errors import UserError

Result = TypeVar("Result")


def in_a_process(
    module: str, task: Any, result: Callable[..., Result], environment: Mapping[str, str] | None = None
) -> Result:
    """Run a module as a program that measures a task.

    Args:
        module: Its name; it ends by calling `answer`.
        task: A dataclass that says what to measure.
        result: A dataclass of what is found.
        environment: Variables to set.

    Raises:
        UserError: The process failed; its last line is told.
    """
    command = [sys.executable, "-m", module, json.dumps(asdict(task))]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})}
    with Console(stderr=True).status(f"measuring {task}"):
        done = subprocess.run(command, env=variables, capture_output=True, text=True)  # noqa: S603 # our own module
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"measuring {task}: {last}")
    return result(**json.loads(done.stdout.splitlines()[-1]))


def answer(task: Callable[..., Any], measure: Callable[[Any], Any]) -> None:
    """Measure what the command line says, and print what is found for `in_a_process`.

    Args:
        task: The dataclass that says what to measure.
        measure: Takes a task and returns a dataclass.
    """
    found = measure(task(**json.loads(sys.argv[1])))
    sys.stdout.write(f"\n{json.dumps(asdict(found))}\n")
