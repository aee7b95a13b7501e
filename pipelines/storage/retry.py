"""Retries of storage requests that fail or stall, with exponential backoff and a deadline."""

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
from pipelines.storage.files import is_local
from pipelines.storage.signatures import hide_signatures

Result = TypeVar("Result")

_FIRST_PAUSE = 0.1
"""Seconds: an isolated failure costs no noticeable time."""

_MAX_PAUSE = 10.0
"""Seconds: pauses double up to here, so that a run resumes at most this long after storage has recovered."""

STALLS = 0.2
"""A request without a response is abandoned after this fraction of the deadline, which leaves time for retries."""

_FAILURES = (OSError, ClientError)  # pyarrow raises OSError, fsspec's HTTP file system aiohttp's ClientError.

_PERMANENT = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|HTTP status 4(?!08|29)"
)
"""Permanent failures in the texts of pyarrow's S3 and GCS errors, which have no error code to look at."""


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
    until = math.inf
    pause = _FIRST_PAUSE
    limit = deadline * STALLS if watched else None
    what = hide_signatures(what)
    while True:
        started = time.monotonic()
        try:
            return request() if is_local(uri) else _result_within(request, limit)
        except FileNotFoundError:
            raise
        except _FAILURES as error:
            # A file that is copied for minutes has all the time for retries, so the first failure starts the clock.
            until = min(until, (started if watched else time.monotonic()) + deadline)
            reason = hide_signatures(" ".join(str(error).split()))[:200] or type(error).__name__
            if is_local(uri) or _is_permanent(error):
                raise ShardError(
                    f"{what}: storage rejected the request ({reason}); check the address and the access rights"
                ) from error
            if time.monotonic() + pause >= until:
                raise ShardError(
                    f"{what}: storage has failed for {deadline:g} s ({reason}); check the storage and restart the run, "
                    "or raise data.storage_seconds"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE)


def _is_permanent(error: Exception) -> bool:
    """Return whether a retry is pointless: the request is wrong or not allowed."""
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    status = getattr(error, "status", None)  # of aiohttp's ClientResponseError
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)  # but for a timeout and too many requests
    return _PERMANENT.search(str(error)) is not None


def _result_within(request: Callable[[], Result], seconds: float | None) -> Result:
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
