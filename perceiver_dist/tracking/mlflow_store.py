"""MLflow's store: tracking URIs, the lock that guards a new database, and permanent errors.

Importing this module sets MLflow's timeouts in the environment, which MLflow reads when it is imported or first used.
So it has to be imported before MLflow. It does not import MLflow, which takes a second or more: every process of a run
imports this module, and only the tracker and the driver of a search need MLflow.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

# A value that the user has set wins. By default MLflow sends usage data to its makers, and retries a failed request for
# minutes, during which no run could be opened or closed. Two retries outlast a dropped connection; everything longer is
# left to the record queue's own retries.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_SQLITE = "sqlite:///"
_PERMANENT_ERRORS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def absolute_tracking_uri(tracking_uri: str) -> str:
    """Return a tracking URI with the path of a SQLite file made absolute.

    Ray starts workers in other working directories than the driver's, where a relative path would be another file.

    Args:
        tracking_uri: As the user gave it: `sqlite:///runs/mlflow.db`, `http://host:5000`, ...
    """
    database = local_database(tracking_uri)
    return tracking_uri if database is None else _SQLITE + str(database.absolute())


def local_database(tracking_uri: str) -> Path | None:
    """Return the file of a SQLite store; None for any other URI.

    Args:
        tracking_uri: MLflow tracking URI.
    """
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def is_permanent(failure: BaseException) -> bool:
    """Return whether an error comes from MLflow itself and no retry can succeed.

    Args:
        failure: Exception raised by a call to MLflow.
    """
    from mlflow.exceptions import MlflowException

    return isinstance(failure, MlflowException) and failure.error_code in _PERMANENT_ERRORS


def wrong_schema(failure: BaseException) -> bool:
    """Return whether an error says that the tables of a database are those of another version of MLflow.

    Args:
        failure: Exception raised by a call to MLflow.
    """
    # MLflow has no code for it, and calls the tables of a newer version out-of-date too.
    return "out-of-date database schema" in str(failure)


def first_line(failure: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its type if it has none.

    Args:
        failure: An exception.
    """
    return str(failure).splitlines()[0] if str(failure) else type(failure).__name__


@contextmanager
def one_process_at_a_time(tracking_uri: str) -> Iterator[None]:
    """Hold a file lock beside a local database: two processes that create its tables at once leave some missing.

    Args:
        tracking_uri: MLflow tracking URI; nothing is locked for a server.
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
    """Limit the logs of MLflow and Alembic, its database migrations, to warnings."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
