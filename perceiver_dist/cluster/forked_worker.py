"""Start of a Ray worker as a fork of the worker template, which Ray's own start of a worker takes the place of.

Ray runs this file instead of its `default_worker.py` and `setup_worker.py` (`perceiver_dist.cluster.worker_template`
says why). It imports the standard library only: it hands its arguments, environment and output to the template, and
ends. If there is no template, or the worker needs what a fork cannot have, it becomes the worker that Ray would start.
"""

import json
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SOCKET = "WORKER_TEMPLATE_SOCKET"
"""Environment variable with the path of the template's socket."""

_CONTEXT = "--serialized-runtime-env-context="
_LANGUAGE = "--language="
_FORKABLE = ("RAY_", "PL_DISABLE_FORK")
"""Prefixes of the environment variables that may be set after the imports: Ray reads its own when it uses them, and Ray
Tune sets the other one, for PyTorch Lightning. A library may read others when it is loaded, so a worker with a runtime
environment that sets any other is started as Ray does it."""


def main(arguments: list[str]) -> None:
    """Have a worker forked, or become it.

    Args:
        arguments: As Ray gives them: this file once more if there is a runtime environment, then those of the worker.
    """
    through_setup = bool(arguments) and arguments[0] == __file__
    given = arguments[1:] if through_setup else arguments
    context = next((text.removeprefix(_CONTEXT) for text in given if text.startswith(_CONTEXT)), "{}")
    variables = _forkable_variables(json.loads(context))
    if variables is not None:
        worker = [text for text in given if not text.startswith((_CONTEXT, _LANGUAGE))]
        if _fork(worker, {**os.environ, **variables}):
            return
    workers = Path(find_spec("ray").origin).parent / "_private" / "workers"  # type: ignore[union-attr, arg-type]
    setup = [str(workers / "setup_worker.py")] if through_setup else []
    os.execv(sys.executable, [sys.executable, *setup, str(workers / "default_worker.py"), *given])  # noqa: S606


def _forkable_variables(context: dict[str, Any]) -> dict[str, str] | None:
    """Return the variables that a runtime environment sets; None if it does what a fork cannot."""
    others = {name: value for name, value in context.items() if name not in ("env_vars", "py_executable")}
    variables: dict[str, str] = context.get("env_vars") or {}
    plain = all(name.startswith(_FORKABLE) and "$" not in value for name, value in variables.items())
    same_python = context.get("py_executable", sys.executable) == sys.executable
    return variables if plain and same_python and not any(others.values()) else None


def _fork(arguments: list[str], environment: dict[str, str]) -> bool:
    """Ask the template for a fork with these arguments and this process's output; return whether it was made."""
    request = json.dumps({"arguments": arguments, "environment": environment, "folder": str(Path.cwd())})
    content = request.encode()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.environ[SOCKET])
            # The open files of a message come with its first bytes.
            socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(content)
            return bool(connection.recv(1))
    except (KeyError, OSError):
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
