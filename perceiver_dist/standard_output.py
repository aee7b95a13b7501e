"""Standard output that cannot be written: the result of a short job is lost, a long one continues without it.

The disk of a log file fills up, the other end of a pipe ends, a terminal is closed, a pipe is set not to block and is
full: none of these is a reason to end a training, whose results go to its folder and to MLflow.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO, cast


class OutputError(OSError):
    """Standard output cannot be written. Not a `BrokenPipeError`, for which rich would end the process."""


@contextmanager
def checked_output() -> Iterator[None]:
    """Context in which standard output that cannot be written is told from other files and connections.

    Raises:
        OutputError: It could not be written; what is left of it is dropped.
    """

    def fail(error: OSError) -> NoReturn:
        raise OutputError(error.errno, error.strerror or str(error)) from error

    output = sys.stdout
    sys.stdout = _replaced(output, fail)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout = output
        _drop_unwritable(output)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Context in which text that standard output or standard error does not take is dropped.

    The first loss is reported on standard error, if that can be written. Writing is tried again with the next text.
    What is left at the end and still cannot be written is dropped too, so that it does not change the exit status.
    """
    output, errors = sys.stdout, sys.stderr
    reported = False

    def report(error: OSError) -> None:
        nonlocal reported
        if not reported:
            reported = True
            # The process's own standard error drops it if it cannot be written.
            sys.stderr.write(
                f"standard output cannot be written ({error.strerror or error}); the work continues without it\n"
            )

    sys.stdout, sys.stderr = _replaced(output, report), _replaced(errors, lambda _: None)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = output, errors
        _drop_unwritable(output)
        _drop_unwritable(errors)


class _Stream:
    """A text stream that calls a function when a write or a flush fails; all else is that of the stream behind it."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._failed = failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except OSError as error:
            self._failed(error)


def _replaced(stream: TextIO, failed: Callable[[OSError], None]) -> TextIO:
    return cast(TextIO, _Stream(stream, failed))


def _drop_unwritable(stream: TextIO) -> None:
    """Point a stream that cannot be flushed at nothing; Python's last flush would end the process with status 120."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
