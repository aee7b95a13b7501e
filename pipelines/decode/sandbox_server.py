"""Server process of `pipelines.decode.sandbox`: forks a child per sample and reports its result or its end."""

import os
import pickle
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from pipelines.errors import SampleError


def serve(connection: Connection) -> None:
    """Serve requests until the client closes the connection.

    The first message is the decoder. Every later message holds the arguments of a call, and its answer is what the
    call returned or raised.

    Args:
        connection: The connection to the client.
    """
    # A crash is expected here, and a core dump of each would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decode = pickle.loads(connection.recv_bytes())  # noqa: S301 # from the process that started this one
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(_decode_in_child(decode, pickle.loads(request)))  # noqa: S301 # as above


def _decode_in_child(decode: Any, arguments: tuple[Any, ...]) -> bytes:
    limits = arguments[-1]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # `os._exit` on every path: the child must never return into the server's loop.
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, limits.decode_seconds)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(_outcome(decode, arguments))
            status = 0
        finally:
            os._exit(status)
    # Close our copy, or the pipe would never reach its end after the child has died.
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcome = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return outcome
    return pickle.dumps(SampleError(_describe_exit(status, limits.decode_seconds)))


def _outcome(decode: Any, arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(_decoded(decode, arguments))
    except (SampleError, RuntimeError) as error:
        return pickle.dumps(error)


def _decoded(decode: Any, arguments: tuple[Any, ...]) -> Any:
    try:
        return decode(*arguments)
    except SampleError:
        raise
    except Exception as error:
        # A bug in the decoder, not a bad sample. Wrapped, because its type may not be picklable.
        raise RuntimeError(f"decoding raised {type(error).__name__}: {error}") from error


def _describe_exit(status: int, seconds: float) -> str:
    if status == -signal.SIGALRM:
        return f"decoding took more than {seconds:g} s"
    if status < 0:
        return f"the decoder ended with signal {signal.Signals(-status).name}"
    return f"the decoder ended with status {status}"


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
