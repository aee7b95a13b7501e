"""Where MLflow keeps its records: its address, who may lay it out, and what its refusals look like.

Whoever imports this has told MLflow how long it may take, which it reads when it is imported or first used.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

# A value the user has set wins. Left alone MLflow reports usage to its makers, and repeats a failed request for
# minutes, in which a run could not be opened or closed.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.exceptions import MlflowException

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_SQLITE = "sqlite:///"
_REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def absolute_tracking_uri(tracking_uri: str) -> str:
    """Make a local tracking address mean the same file in every process.

    Ray starts workers in other folders than the driver's, where a relative SQLite path is another file. The driver
    calls this before it hands the address on.

    Args:
        tracking_uri: What the user gave: `sqlite:///runs/mlflow.db`, `http://host:5000`, ...

    Returns:
        The same address, with a SQLite path made absolute from the current folder.
    """
    database = local_database(tracking_uri)
    return tracking_uri if database is None else _SQLITE + str(database.absolute())


def local_database(tracking_uri: str) -> Path | None:
    """Return the file of a SQLite store, None for every other address.

    Args:
        tracking_uri: Where MLflow keeps its records.
    """
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def is_refusal(failure: BaseException) -> bool:
    """Return whether MLflow itself said that it will not do what it was asked to, now or later.

    Args:
        failure: What a call to MLflow raised.
    """
    return isinstance(failure, MlflowException) and failure.error_code in _REFUSALS


def first_line(failure: BaseException) -> str:
    """Return what went wrong, in one line.

    Args:
        failure: An exception.
    """
    return str(failure).splitlines()[0] if str(failure) else type(failure).__name__


@contextmanager
def one_process_at_a_time(tracking_uri: str) -> Iterator[None]:
    """Hold a lock beside a local database: two processes that lay out a new one at once leave it half made.

    Args:
        tracking_uri: Where MLflow keeps its records; nothing is locked for a server.
    """
    database = local_database(tracking_uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def quiet_mlflow() -> None:
    """Let MLflow and its database layer log warnings only."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
