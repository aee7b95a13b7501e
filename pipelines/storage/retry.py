"""Retries of storage requests that fail or stall, with exponential backoff and a deadline.

`with_retries` is for shards and indexes, whose loss ends a run with one line, `retried` for the files of a run, whose
callers know what to do without them.
"""

import math
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from aiohttp import ClientError

from perceiver_dist.errors import UserError
from pipelines.errors import ShardError
from pipelines.storage.signatures import hide_signatures

Result = TypeVar("Result")

_FIRST_PAUSE = 0.1
"""Seconds: an isolated failure costs no noticeable time."""

_MAX_PAUSE = 10.0
"""Seconds: pauses double up to here, so that a run resumes at most this long after storage has recovered."""

STALLS = 0.2
"""A request without a response is abandoned after this fraction of the deadline, which leaves time for retries."""

RETRY_SECONDS = 120.0
"""How long requests for the files of a run are retried: it outlasts usual disturbances, and is less than the time from
which a run that waits for its storage counts as hung (`data.storage_seconds`)."""

_READ_SECONDS = 30.0
"""After this time a request for a small file that has no answer is abandoned."""

_FAILURES = (OSError, ClientError)  # pyarrow raises OSError, fsspec's HTTP file system aiohttp's ClientError.

_PERMANENT = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|HTTP status 4(?!08|29)"
)
"""Permanent failures in the texts of pyarrow's S3 and GCS errors, which have no error code to look at."""

_OVERLOADED = re.compile(
    r"SLOW_DOWN|SERVICE_UNAVAILABLE|THROTTLING|REQUEST_TIMEOUT|HTTP status (5\d\d|408|429)"
)


def with_retries(
    request: Callable[[], Result], what: str, uri: str, deadline: float, *, watched: bool = True
) -> Result:
    """Send a storage request; retry with growing pauses while it fails or stalls.

    Requests for local files are not retried: a disk error does not go away.

    Args:
        request: Returns the result. For remote storage it runs in another thread, where an abandoned request may
            continue beside its retry.
        what: What is requested, for errors, for example "shard s3://...".
        uri: Path or URI of the file.
        deadline: Seconds after which to give up, counted from the first request that fails.
        watched: Whether to abandon a request without a result; False for one that takes long and notices itself that
            storage stalls.

    Returns:
        The result.

    Raises:
        FileNotFoundError: There is no such file.
        ShardError: Storage rejects the request, or still fails at the deadline.
    """
    limit = deadline * STALLS if watched else None
    what = hide_signatures(what)
    try:
        return _repeated(request, uri, deadline, limit, from_start=watched)
    except FileNotFoundError:
        raise
    except _FAILURES as error:
        reason = hide_signatures(" ".join(str(error).split()))[:200] or type(error).__name__
        if is_local(uri) or _is_permanent(error):
            raise ShardError(
                f"{what}: storage rejected the request ({reason}); check the address and the access rights"
            ) from error
        raise ShardError(
            f"{what}: storage has failed for {deadline:g} s ({reason}); check the storage and restart the run, "
            "or raise data.storage_seconds"
        ) from error


def retried(
    request: Callable[[], Result], uri: str, seconds: float = RETRY_SECONDS, *, reads: bool
) -> Result:
    """Send a request for a file of a run; retry with growing pauses while remote storage fails.

    Args:
        request: Returns the result. It may be sent again although it has succeeded, if its answer was lost.
        uri: Path or URI of the file.
        seconds: Seconds after which to give up; 0 for one attempt.
        reads: Whether it reads a small file, so that it may be abandoned when it has no answer for long. A write that
            was abandoned could still succeed, after a later one.

    Returns:
        The result.

    Raises:
        OSError: Storage rejects the request, or still fails; the last error.
    """
    if not seconds:
        return request()
    return _repeated(request, uri, seconds, _READ_SECONDS if reads else None, from_start=True)


def _repeated(
    request: Callable[[], Result], uri: str, seconds: float, limit: float | None, *, from_start: bool
) -> Result:
    """Return a request's result; after permanent errors, and after some seconds of failures, raise the last error.

    Args:
        request: The request.
        uri: Path or URI of the file.
        seconds: Seconds of failures.
        limit: Seconds after which an attempt is abandoned; None for never.
        from_start: Whether they are counted from the start of the first attempt that fails, or from its end.

    Raises:
        FileNotFoundError: There is no such file.
    """
    until = math.inf
    pause = _FIRST_PAUSE
    while True:
        started = time.monotonic()
        try:
            return request() if is_local(uri) or limit is None else _result_within(request, limit)
        except FileNotFoundError:
            raise
        except _FAILURES as error:
            # A file that is copied for minutes has all the time for retries, so the first failure starts the clock.
            until = min(until, (started if from_start else time.monotonic()) + seconds)
            if is_local(uri) or _is_permanent(error) or time.monotonic() + pause >= until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE)


def is_local(uri: str) -> bool:
    """Return whether a path or URI names a file of this machine's file system.

    Args:
        uri: Path or URI.
    """
    return "://" not in uri or uri.startswith("file://")


def is_answered(error: Exception) -> bool:
    """Return whether a storage is there, but does not answer the request now: it is overloaded or disturbed.

    Args:
        error: What the request has raised.
    """
    status = getattr(error, "status", None)  # of aiohttp's ClientResponseError
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    return _OVERLOADED.search(str(error)) is not None


def _is_permanent(error: Exception) -> bool:
    """Return whether a retry is pointless: the request is wrong or not allowed."""
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    status = getattr(error, "status", None)  # of aiohttp's ClientResponseError
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)  # but for a timeout and too many requests
    return _PERMANENT.search(str(error)) is not None


def _result_within(request: Callable[[], Result], seconds: float) -> Result:
    """Run a request in a daemon thread, so that a request that never returns does not block the process's exit.

    Raises:
        TimeoutError: There is no result in time.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(request())
        except (*_FAILURES, UserError) as error:
            result.set_exception(error)
        except BaseException as error:
            result.set_exception(error)
            raise  # Unexpected: the thread shows its traceback too, in case the caller no longer waits.

    Thread(target=run, daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError as error:
        if result.done():
            raise  # The request's own: storage timed out.
        raise TimeoutError(f"no response within {seconds:g} s") from error
