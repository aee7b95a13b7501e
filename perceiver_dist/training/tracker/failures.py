"""What ended a rank, told so that a person can act on it: an error of the code is not a lost machine.

When one rank raises, the others end too, since the collective that they wait in is gone. So three kinds are told
apart. "code": an error that the same step will raise again. "environment": a storage or a part of Ray refused, which
may pass. "peer": another rank is gone; why is for that rank to say, or for nobody if its machine is gone.
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

from perceiver_dist.errors import UserError
from perceiver_dist.training.tracker.remote_method import RemoteMethod
from pipelines.storage.files import STORAGE_ERRORS

Kind = Literal["code", "environment", "peer"]

_PACKAGES = ("perceiver_dist", "pipelines", "jobs")

_PEER_IS_GONE = (
    "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "Socket closed",
    "Timed out waiting", "pair closure", "remote process exited", "ncclRemoteError", "communicator was aborted",
)  # fmt: skip
"""What gloo and NCCL say when a rank that they talk to is gone; torch passes most of it on in a plain RuntimeError."""

_SECONDS_FOR_TRACKER = 30.0
"""How long a rank that ends waits until the tracker has heard why."""


@dataclass
class RankState:
    """Where a rank is, kept current by its loop.

    Attributes:
        rank: The rank.
        step: The optimizer step that it takes, counted from 1; outside a step, those that it has taken.
        activity: What it does there, such as "training".
    """

    rank: int
    step: int = 0
    activity: str = "starting"

    def enter(self, activity: str, step: int) -> None:
        """Note what the rank does from now on.

        Args:
            activity: What it does.
            step: The optimizer step, as above.
        """
        self.activity, self.step = activity, step


@dataclass(frozen=True)
class RankFailure:
    """What ended a rank.

    Attributes:
        state: Where the rank was.
        kind: What it means for the run.
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
    """Return what an exception says of the rank that it ended.

    Args:
        error: The exception; of one that came from a Ray task, the task's own traceback counts.
        state: Where the rank was.
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
    """Return what was raised in a Ray task or actor, if that is where an exception comes from.

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
    """Tell the tracker of whatever ends a rank, and raise it again.

    Args:
        tracker: The `Tracker` actor.
        state: The rank's state, as it is when the exception passes.

    Raises:
        Exception: Whatever was raised inside. A UserError is what the user can mend.
    """
    try:
        yield
    except Exception as error:  # Whatever it is: it is told and raised again.
        failure, cause = failure_of(error, state), cause_of(error)
        if _is_out_of_memory(cause):
            cause = UserError(
                f"rank {state.rank} is out of memory while {state.activity} ({str(cause).splitlines()[0]}); lower "
                "train.micro_batch or the model's sizes, or set model.activation_checkpointing or a higher "
                "deepspeed.zero_stage"
            )
        # A tracker that is gone must not hide what was raised.
        with suppress(RayError):
            if isinstance(cause, UserError):
                # Ray Data adds lines of its own, on retries.
                ray.get(tracker.stop_for.remote(str(cause).splitlines()[0]), timeout=_SECONDS_FOR_TRACKER)
            else:
                ray.get(tracker.rank_failed.remote(failure), timeout=_SECONDS_FOR_TRACKER)
        raise


class ErrorRecord(Protocol):
    """Where errors of an actor that nobody waits for become visible."""

    def keep_traceback(self, name: str, text: str) -> None:
        """Keep a traceback as a file.

        Args:
            name: What the file is called.
            text: The traceback.
        """

    def tell(self, line: str) -> None:
        """Show a line on the screen.

        Args:
            line: The line.
        """


Record = TypeVar("Record", bound=ErrorRecord)
Arguments = ParamSpec("Arguments")


def errors_are_told(
    method: Callable[Concatenate[Record, Arguments], None],
) -> Callable[Concatenate[Record, Arguments], None]:
    """Make an error in a method of an actor visible where the caller does not wait for an answer.

    Args:
        method: The method.
    """

    @wraps(method)
    def told(record: Record, /, *given: Arguments.args, **named: Arguments.kwargs) -> None:
        try:
            method(record, *given, **named)
        except Exception as error:  # Whatever it is: it is told and raised again.
            failure = failure_of(error, RankState(0))
            record.keep_traceback(f"tracker-{method.__name__}", failure.traceback)
            record.tell(f"the run's record has a gap: {method.__name__}: {failure.error} ({failure.place})")
            raise

    return told


def _is_out_of_memory(error: BaseException) -> bool:
    # By its name, so that a rank can say that torch cannot be imported. On CPU torch raises a plain RuntimeError.
    kind = type(error)
    on_gpu = kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch")
    return on_gpu or "DefaultCPUAllocator: can't allocate" in str(error)
