"""Asking storage again when it fails or stalls, until a deadline."""

import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from aiohttp import ClientError

from pipelines.errors import ShardError
from pipelines.storage.files import is_local

Answer = TypeVar("Answer")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_TRIES = 5
"""A request that stalls is given up after this part of the deadline, so that there is time to ask again."""

_FAILURES = (OSError, ClientError)
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|HTTP status 4(?!08|29)"
)


def with_retries(ask: Callable[[], Answer], what: str, uri: str, deadline: float) -> Answer:
    """Ask storage, and ask again after a growing pause if it fails or does not answer.

    Local files are asked for once: what a disk refuses it refuses again.

    Args:
        ask: Returns the answer; may run in another thread, and go on there after it was given up.
        what: What is asked for, for the error: "shard s3://...".
        uri: Where it lies.
        deadline: Seconds after which to give up.

    Returns:
        The answer.

    Raises:
        FileNotFoundError: There is no such file.
        ShardError: Storage refuses, or gave no answer in time.
    """
    until = time.monotonic() + deadline
    pause = _FIRST_PAUSE
    while True:
        try:
            return ask() if is_local(uri) else _answer_within(ask, deadline / _TRIES)
        except FileNotFoundError:
            raise
        except _FAILURES as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if is_local(uri) or _is_refusal(error):
                raise ShardError(
                    f"{what}: storage refuses ({reason}); check it and the rights to it"
                ) from error
            if time.monotonic() + pause >= until:
                raise ShardError(
                    f"{what}: storage has failed for {deadline:g} s ({reason}); check it and start the same run again, "
                    "or raise data.storage_seconds"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_refusal(error: Exception) -> bool:
    """Whether asking again would change nothing: the request is not allowed or wrong."""
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    return _REFUSED.search(str(error)) is not None


def _answer_within(ask: Callable[[], Answer], seconds: float) -> Answer:
    """Ask in a thread that nobody has to wait for, not even the end of the process.

    Raises:
        TimeoutError: There is no answer yet.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except (*_FAILURES, ShardError) as error:
            answer.set_exception(error)
        except BaseException as error:
            answer.set_exception(error)
            raise

    Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        if answer.done():
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from error
