"""Failures of ranks, classified so that an error of the code is not mistaken for a lost machine.

When one rank raises, the others fail too, because the collective in which they wait breaks. So there are three kinds.
"code": an error that the same step will raise again. "environment": storage or a part of Ray failed, which may pass.
"peer": another rank is gone; that rank reports the reason, or none does if its machine is lost.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from perceiver_dist.cluster.remote_method import RemoteMethod
from perceiver_dist.errors import UserError
from perceiver_dist.training.liveness.rank_state import RankState
from pipelines.storage.files import STORAGE_ERRORS

Kind = Literal["code", "environment", "peer"]

_PACKAGES = ("perceiver_dist", "pipelines", "jobs")

_PEER_IS_GONE = (
    "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "Socket closed",
    "Timed out waiting", "pair closure", "remote process exited", "ncclRemoteError", "communicator was aborted",
)  # fmt: skip
"""Parts of the messages of gloo and NCCL when a peer is gone. torch raises most of them as a plain RuntimeError, so
there is no type to check."""

_SECONDS_FOR_TRACKER = 30.0
"""Maximum wait of a failing rank until the tracker has received its report. The tracker answers in milliseconds unless
its node is lost, in which case the rank must still end."""


@dataclass(frozen=True)
class RankFailure:
    """Failure of a rank.

    Attributes:
        state: Step and activity of the rank.
        kind: Class of the failure; see the module.
        error: Type and first line of the message.
        place: File and line of the innermost frame in this project, such as "perceiver_dist/training/loop.py:42".
        traceback: The whole traceback.
    """

    state: RankState
    kind: Kind
    error: str
    place: str
    traceback: str

    @property
    def line(self) -> str:
        """One line for the screen."""
        where = f"step {self.state.step}: rank {self.state.rank} raised while {self.state.activity}"
        return f"{where}: {self.error} ({self.place})"


def failure_of(error: BaseException, state: RankState) -> RankFailure:
    """Return the failure that an exception means for the rank that it ended.

    Args:
        error: The exception. If it comes from a Ray task, the task's own traceback is used.
        state: Step and activity of the rank.
    """
    cause = cause_of(error)
    text = "".join(traceback.format_exception(error))
    message = str(cause).strip().partition("\n")[0]
    return RankFailure(
        RankState(state.rank, state.step, state.activity),
        _kind_of(cause),
        f"{type(cause).__name__}: {message}" if message else type(cause).__name__,
        place_in(text),
        text,
    )


def cause_of(error: BaseException) -> BaseException:
    """Return the exception raised in a Ray task or actor, if there is one behind `error`; else `error`.

    Args:
        error: Any exception.
    """
    while (
        isinstance(error, RayTaskError)
        and isinstance(error.cause, BaseException)
        and error.cause is not error
    ):
        error = error.cause
    return error


def place_in(text: str) -> str:
    """Return file and line of the innermost frame in this project that a traceback names, or of the innermost one.

    Args:
        text: A traceback, perhaps with those of Ray tasks in it.
    """
    found = [place for line in text.splitlines() if (place := _place_of(line))]
    ours = [place for place in found if place.startswith(_PACKAGES)]
    return (ours or found or ["no place known"])[-1]


def _place_of(line: str) -> str:
    """Return "perceiver_dist/x.py:42" of a line `File ".../perceiver_dist/x.py", line 42, in f`; "" of another."""
    _, quote, rest = line.partition('File "')
    path, middle, rest = rest.partition('", line ')
    number = rest.partition(",")[0]
    if not quote or not middle or not number.isdigit():
        return ""
    parts = Path(path).parts
    if "site-packages" not in parts:
        for package in _PACKAGES:
            if package in parts:
                start = len(parts) - 1 - parts[::-1].index(package)
                return f"{'/'.join(parts[start:])}:{number}"
    return f"{Path(path).name}:{number}"


def _kind_of(error: BaseException) -> Kind:
    if any(words in str(error) for words in _PEER_IS_GONE):
        return "peer"
    if isinstance(error, (RayError, MemoryError, *STORAGE_ERRORS)) and not isinstance(error, RayTaskError):
        return "environment"
    return "code"


class FailureReceiver(Protocol):
    """Handle of the actor to which ranks report failures."""

    rank_failed: RemoteMethod[[RankFailure], None]
    stop_for: RemoteMethod[[str], None]


@contextmanager
def failures_reported(tracker: FailureReceiver, state: RankState) -> Iterator[None]:
    """Report any exception to the tracker, and raise it again.

    Args:
        tracker: The `Tracker` actor.
        state: State of the rank, read when the exception passes.

    Raises:
        Exception: The exception raised inside.
    """
    try:
        yield
    except Exception as error:  # any error, reported and raised again
        failure, cause = failure_of(error, state), cause_of(error)
        if _is_out_of_memory(cause):
            cause = UserError(
                f"rank {state.rank} is out of memory while {state.activity} ({str(cause).splitlines()[0]}); lower "
                "train.micro_batch or the model's sizes, or set model.activation_checkpointing or a higher "
                "deepspeed.zero_stage"
            )
        # The loss of the tracker must not hide the exception.
        with suppress(RayError):
            if isinstance(cause, UserError):
                # The first line only: Ray Data appends lines about retries.
                ray.get(tracker.stop_for.remote(str(cause).splitlines()[0]), timeout=_SECONDS_FOR_TRACKER)
            else:
                ray.get(tracker.rank_failed.remote(failure), timeout=_SECONDS_FOR_TRACKER)
        raise


class ErrorRecord(Protocol):
    """Actor that makes the errors of its own methods visible."""

    def keep_traceback(self, name: str, text: str) -> None:
        """Save a traceback as a file.

        Args:
            name: Name of the file.
            text: The traceback.
        """

    def report(self, line: str) -> None:
        """Show a line on the screen.

        Args:
            line: The line.
        """


Record = TypeVar("Record", bound=ErrorRecord)
Arguments = ParamSpec("Arguments")


def errors_reported(
    method: Callable[Concatenate[Record, Arguments], None],
) -> Callable[Concatenate[Record, Arguments], None]:
    """Make an error in a method of an actor visible whose caller does not wait for the answer.

    Ray would keep the error with the answer, where nobody reads it.

    Args:
        method: The method.
    """

    @wraps(method)
    def reporting(record: Record, /, *given: Arguments.args, **named: Arguments.kwargs) -> None:
        try:
            method(record, *given, **named)
        except Exception as error:  # any error, reported and raised again
            failure = failure_of(error, RankState(0))
            record.keep_traceback(f"tracker-{method.__name__}", failure.traceback)
            record.report(f"the run's record has a gap: {method.__name__}: {failure.error} ({failure.place})")
            raise

    return reporting


def _is_out_of_memory(error: BaseException) -> bool:
    # By name instead of by type, so that a failed import of torch can be reported too. On CPU torch raises a plain
    # RuntimeError.
    kind = type(error)
    on_gpu = kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch")
    return on_gpu or "DefaultCPUAllocator: can't allocate" in str(error)
