"""Decoding in a way that a decoder which crashes or hangs costs its sample only, not the run.

What a crash does to a process cannot be caught in it. Two attempts are therefore made, each a Ray task of its own:

1. The first decodes in the task's own process, which costs nothing. A timer ends the process if a sample takes too
   long: the kernel carries that out, even if the decoder never comes back to Python. So a hang becomes a crash.
2. If the process died, Ray runs the task again, as often as it takes and without the training noticing. Then each
   sample is decoded in a child process of its own. If the child dies, the sample is bad, and the task goes on.

Both attempts give the same arrays. A task may also die for other reasons, such as a node that is lost; then its
second attempt is slower, and no more.
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
        decode: Decodes in this process.
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
    """Give a decoder that decodes each sample in a child process of its own.

    Children are forked by a process that was started fresh: one of Ray's has threads, and a fork of it could hang.

    Args:
        decode: Decodes in the child.

    Yields:
        The decoder. Of a sample whose child dies or takes too long it says so in a SampleError.
    """
    ours, theirs = Pipe()
    with theirs:
        server = subprocess.Popen(  # noqa: S603 # our own module
            [sys.executable, "-m", "pipelines.decode.sandbox_server", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            # Without threads of a linear algebra library, so that a fork of it is safe.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        )
    try:
        ours.send_bytes(cloudpickle.dumps(decode))  # type: ignore[no-untyped-call] # Ray leaves it without types

        def decode_in_child(
            sample: RawSample,
            inputs: Mapping[str, ModalityInput],
            randomness: SampleRandomness,
            limits: Limits,
        ) -> Arrays:
            return _ask(ours, (sample, dict(inputs), randomness, limits))

        yield decode_in_child
    finally:
        ours.close()
        server.wait()


@contextmanager
def sandboxed_on_retry(decode: Decode) -> Iterator[Decode]:
    """Give a Ray task the decoder of its attempt: in its own process at first, in children once that has died.

    Args:
        decode: Decodes.

    Yields:
        The decoder.
    """
    context: Any = ray.get_runtime_context()
    run_again = context.worker.core_worker.get_current_task_attempt_number() > 0
    with sandboxed(decode) if run_again else nullcontext(with_time_limit(decode)) as safe:
        yield safe


def _ask(server: Connection, request: tuple[object, ...]) -> Arrays:
    server.send_bytes(pickle.dumps(request))
    outcome: Arrays | Exception = pickle.loads(server.recv_bytes())  # noqa: S301 # from our own process
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
