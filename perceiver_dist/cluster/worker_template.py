"""Template of Ray's workers on this machine: a process that has imported what they need, and forks them.

A run has about 15 worker processes (actors of this project, of Ray Train and of Ray Data, and read tasks). Each would
spend a second of CPU on the same imports, a rank five. Ray has no way to share them: `RAY_preload_python_modules` only
moves them to the start of each process. So Ray is told to run `forked_worker.py` as its worker. It asks this process
for a fork, which then runs Ray's own `default_worker.py` and registers with Ray by its own process number, so Ray
watches and ends it as any other worker. All share the memory of the imported code.

A fork of a process with threads, or that has used a GPU, is broken. Therefore this process does nothing but import:
numpy starts no threads (`OMP_NUM_THREADS`), and `import torch` does not touch the GPU. DeepSpeed asks for GPUs when it
is imported, so it is left to the ranks where there is a GPU (`without_gpu`). Ray reads its configuration from the
environment when it is imported, so it is imported with the environment of the first worker. Each fork has its own
process group, which Ray may kill as a whole, and the default actions of signals. The template ends with the process
that started it.

Forks must not share the state of a random number generator either: two processes with the same ids of tasks end with
`Check failed: erased == 1`. Python's own generator takes care of itself, numpy's is seeded in each fork, and Ray's must
not have been used before. Ray 2.60 uses it at one place when modules are imported: for the ids of actor classes, which
the template takes from the operating system instead. After every import two forks compare a random id; if they agree,
the template forks no more workers, and Ray starts the others in its own way.
"""

import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perceiver_dist.cluster.forked_worker import SOCKET
from perceiver_dist.cluster.surroundings import cluster_address, use_short_temporary_folder
from perceiver_dist.termination_signals import without_termination_signals

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices of NVIDIA's driver, of AMD's, and of GPUs under Windows (WSL)."""
_BACKLOG = 64
"""Workers that may ask at the same time; Ray starts 8 at a time (`RAY_worker_maximum_startup_concurrency`)."""


@dataclass(frozen=True)
class TemplateImports:
    """Modules that the template imports. Their import must start no thread.

    Attributes:
        first: Imported at once, while Ray starts. They must not import Ray.
        before_fork: Imported before the first worker is forked.
        while_idle: Imported when no worker is asked for, one after the other.
        without_gpu: The same, if this machine has no GPU.
    """

    first: tuple[str, ...]
    before_fork: tuple[str, ...]
    while_idle: tuple[str, ...]
    without_gpu: tuple[str, ...]


_FREE: list["subprocess.Popen[bytes]"] = []
"""The template of this process that no Ray uses yet, if there is one."""
_USED: list["subprocess.Popen[bytes]"] = []
"""Templates of Rays that this process has started, kept so that their input stays open until this process ends."""
_IMPORTS: list[TemplateImports] = []
"""What the last template imports."""


def start_template(imports: TemplateImports) -> None:
    """Start the template; the next `start_ray` that starts a Ray here uses it.

    Nothing is done if this process has one that no Ray uses yet, or if it joins a cluster, whose nodes start their own
    workers.

    Args:
        imports: What the workers need.
    """
    if cluster_address() or _FREE:
        return
    _IMPORTS[:] = [imports]
    use_short_temporary_folder()
    folder = tempfile.mkdtemp(prefix="ray_workers_")  # only this user may enter it
    os.environ[SOCKET] = f"{folder}/socket"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # The template ends when its input does: with this process, however it ends. Until then it and its forks have to
    # work, also after a SIGTERM to all processes of the job.
    with without_termination_signals():
        _FREE.append(
            subprocess.Popen(  # noqa: S603
                [sys.executable, __file__, json.dumps(asdict(imports))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        )


def replace_template() -> None:
    """End the template of a Ray that did not start, if it had one, and start another for the next Ray."""
    if _USED:
        ended = _USED.pop()
        ended.kill()
        ended.wait()
        start_template(_IMPORTS[0])


def take_template() -> bool:
    """Return whether there is a template for a Ray that is about to start. It is for this Ray only.

    Ray keeps what it reads from the environment when it is imported, such as the process of its raylet, so the forks of
    a template cannot belong to two Rays.
    """
    if not _FREE:
        return False
    _USED.append(_FREE.pop())
    return _USED[-1].poll() is None


@dataclass(frozen=True)
class _Request:
    """What a worker has to become: arguments, environment, working folder, and its input and outputs."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    files: list[int]


def _serve(listener: socket.socket, imports: TemplateImports) -> _Request | None:
    """Fork workers. Return a worker's request in its process; None in this one, once its input has ended."""
    signal.signal(signal.SIGCHLD, _reap)
    has_gpu = any(Path(device).exists() for device in _GPU_DEVICES)
    waiting = [*imports.while_idle, *(() if has_gpu else imports.without_gpu)]
    imported = False
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [], 0 if imported and waiting else None)
        if sys.stdin in readable:
            return None
        if not readable:
            importlib.import_module(waiting.pop(0))
            if not _forks_differ():
                return None
            _keep_shared()
            continue
        connection, _ = listener.accept()
        # Ray may have killed the process that asks, whose end of the connection is closed then.
        with connection, suppress(ConnectionError):
            request = _receive(connection)
            if not imported:
                os.environ.update(request.environment)
                _keep_generator_unused()
                _import(imports.before_fork)
                if not _forks_differ():
                    return None  # without an answer, the worker starts by itself
                imported = True
                _keep_shared()
            worker = os.fork()
            if worker == 0:
                return request
            _WORKERS.add(worker)
            for file in request.files:
                os.close(file)
            connection.sendall(b"1")


def _keep_shared() -> None:
    """Keep the garbage collector of forks from touching, and so copying, the memory of the imports so far.

    Ray collects garbage in all workers every 90 minutes.
    """
    gc.collect()
    gc.freeze()


def _keep_generator_unused() -> None:
    """Give actor classes ids from the operating system, not from Ray's random number generator."""
    import ray.actor
    from ray._raylet import ActorClassID

    class _FromSystem(ActorClassID):
        @classmethod
        def from_random(cls) -> ActorClassID:  # type: ignore[override] # Ray's type says Self
            return ActorClassID(os.urandom(cls.size()))

    actors: Any = ray.actor
    actors.ActorClassID = _FromSystem


def _forks_differ() -> bool:
    """Return whether two forks of this process get different random ids from Ray."""
    ids = set()
    for _ in range(2):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            from ray import NodeID

            os.write(writing, NodeID.from_random().binary())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as received:
            ids.add(received.read())
        os.waitpid(child, 0)
    return len(ids) == 2


def _become_worker(request: _Request) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(request.files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    from ray._private import workers

    script = str(Path(workers.__path__[0]) / "default_worker.py")
    sys.argv = [script, *request.arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def _receive(connection: socket.socket) -> _Request:
    length, files, *_ = socket.recv_fds(connection, 8, 3)
    content = b""
    if not length:
        raise ConnectionError("a worker ended before it asked to be forked")
    while len(content) < int.from_bytes(length, "big"):
        received = connection.recv(1 << 20)
        if not received:
            raise ConnectionError("a worker ended while it asked to be forked")
        content += received
    return _Request(**json.loads(content), files=list(files))


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)


_WORKERS: set[int] = set()
"""Process numbers of the forked workers that have not been reaped."""


def _reap(*_: object) -> None:
    """Remove ended workers from the table of processes, since a zombie looks alive to Ray."""
    # Not any child: the import of a library may wait for one of its own.
    for worker in list(_WORKERS):
        try:
            ended = os.waitpid(worker, os.WNOHANG)[0]
        except ChildProcessError:
            ended = worker
        if ended:
            _WORKERS.discard(worker)


def _main() -> None:
    path = os.environ[SOCKET]
    wanted = TemplateImports(**{name: tuple(modules) for name, modules in json.loads(sys.argv[1]).items()})
    # Read by numpy's and torch's libraries when they are loaded; ranks set the threads that they compute with.
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[0] = ""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(_BACKLOG)
        _import(wanted.first)
        request = _serve(listener, wanted)
    if request is not None:
        _become_worker(request)
    else:
        shutil.rmtree(Path(path).parent, ignore_errors=True)


if __name__ == "__main__":
    _main()
