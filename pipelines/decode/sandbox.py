"""Sandboxed decoding: a decoder that crashes or hangs costs only its sample, not the run.

A process cannot catch its own crash. So there are up to two attempts, each an attempt of a Ray task:

1. The first decodes in the task's own process, which costs nothing. A timer ends the process if a sample takes too
   long. The kernel delivers the signal, even if the decoder never returns to Python. So a hang becomes a crash.
2. If the process died, Ray retries the task, without limit and without Ray Train noticing. The retry decodes each
   sample in a child process. If the child dies, the sample is bad, and the task continues.

Both attempts give the same arrays. A task may also die for other reasons, such as a lost node. Its retry is then
slower, and otherwise the same.

Not pebble.ProcessPool: it is faster for good samples (0.2 ms; a fork here 7 ms), but reuses its worker, so memory that
a damaged sample leaked or corrupted reaches later ones, and a crash costs it 0.5 s; a worker per sample takes 140 ms.
Not concurrent.futures: it has no timeout that ends a worker, and one crash breaks the whole pool.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray import cloudpickle

from perceiver_dist.modalities import ModalityInput
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode.sample import Arrays, Decode
from pipelines.limits import Limits
from pipelines.shards.sample_reader import RawSample


def with_time_limit(decode: Decode) -> Decode:
    """Return a decoder that ends this process with SIGALRM if a sample takes longer than its limit.

    Args:
        decode: The decoder to call, in this process.
    """

    def decode_in_time(
        sample: RawSample, inputs: Mapping[str, ModalityInput], randomness: SampleRandomness, limits: Limits
    ) -> Arrays:
        signal.setitimer(signal.ITIMER_REAL, limits.decode_seconds)
        try:
            return decode(sample, inputs, randomness, limits)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return decode_in_time


@contextmanager
def sandboxed(decode: Decode) -> Iterator[Decode]:
    """Provide a decoder that decodes each sample in its own child process.

    A fresh server process forks the children. A fork of this process could deadlock, because Ray workers have threads.

    Args:
        decode: The decoder to call in the child.

    Yields:
        The decoder. It raises SampleError if a child dies or takes too long.
    """
    ours, theirs = Pipe()
    with theirs:
        server = subprocess.Popen(  # noqa: S603 # our own module
            [sys.executable, "-m", "pipelines.decode.sandbox_server", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            # No threads of a linear algebra library, so that the server can fork safely.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        )
    try:
        ours.send_bytes(cloudpickle.dumps(decode))  # type: ignore[no-untyped-call] # untyped in Ray

        def decode_in_child(
            sample: RawSample,
            inputs: Mapping[str, ModalityInput],
            randomness: SampleRandomness,
            limits: Limits,
        ) -> Arrays:
            return _request(ours, (sample, dict(inputs), randomness, limits))

        yield decode_in_child
    finally:
        ours.close()
        server.wait()


@contextmanager
def sandboxed_on_retry(decode: Decode) -> Iterator[Decode]:
    """Provide the decoder for the current attempt of a Ray task: in process on the first, in children on a retry.

    Args:
        decode: The decoder to call.

    Yields:
        The decoder.
    """
    context: Any = ray.get_runtime_context()
    # Ray has no public API for the attempt number (2.60).
    is_retry = context.worker.core_worker.get_current_task_attempt_number() > 0
    with sandboxed(decode) if is_retry else nullcontext(with_time_limit(decode)) as safe:
        yield safe


def _request(server: Connection, request: tuple[object, ...]) -> Arrays:
    server.send_bytes(pickle.dumps(request))
    outcome: Arrays | Exception = pickle.loads(server.recv_bytes())  # noqa: S301 # from our own process
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
