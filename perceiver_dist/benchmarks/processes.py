"""Measurements in subprocesses, so that none inherits another's memory, threads or caches."""

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


def measure_in_subprocess(
    module: str, task: Any, result: Callable[..., Result], environment: Mapping[str, str] | None = None
) -> Result:
    """Run a module as a program that measures a task, and return its result.

    Args:
        module: Name of the module, whose main block calls `run_measurement`.
        task: Dataclass instance that describes the task.
        result: Dataclass of the result.
        environment: Environment variables to set.

    Raises:
        UserError: The process failed; the message has its last line.
    """
    command = [sys.executable, "-m", module, json.dumps(asdict(task))]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})}
    with Console(stderr=True).status(f"measuring {task}"):
        done = subprocess.run(command, env=variables, capture_output=True, text=True)  # noqa: S603 # our own module
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"measuring {task}: {last}")
    return result(**json.loads(done.stdout.splitlines()[-1]))


def run_measurement(task: Callable[..., Any], measure: Callable[[Any], Any]) -> None:
    """Measure the task on the command line and print the result for `measure_in_subprocess`.

    Args:
        task: Dataclass of the task.
        measure: Takes a task and returns a dataclass.
    """
    result = measure(task(**json.loads(sys.argv[1])))
    # On a line of its own, whatever the measured libraries have printed.
    sys.stdout.write(f"\n{json.dumps(asdict(result))}\n")
