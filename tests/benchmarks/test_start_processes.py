"""Times of the processes of a starting job."""

import os
import subprocess
import sys
from pathlib import Path

from perceiver_dist.benchmarks.import_probe.sitecustomize import FOLDER
from perceiver_dist.benchmarks.start_processes import PROBE, ProcessWatch, name_of

SCRIPT = """
import os, sys
import numpy
child = os.fork()
if child == 0:
    import decimal
    sum(range(3_000_000))
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)
os.waitpid(child, 0)
"""


def test_imports_are_timed_in_a_process_and_in_its_fork(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROBE), FOLDER: str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, **pipes) as job:  # type: ignore[call-overload]
        watch = ProcessWatch(job.pid, tmp_path)
        assert job.stdout.readline() == b"ready\n"
        watch.look()
        (found,) = watch.times(seconds=60)
        job.stdin.close()
    assert found.count == 2
    assert found.begins == 0
    assert 0 < found.import_cpu <= found.cpu
    assert found.imports > 0
    assert found.work > 0
    assert found.waiting > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_processes_are_named_by_their_titles() -> None:
    assert name_of("ray::RayTrainWorker.execute") == "ranks"
    assert name_of("ray::SplitCoordinator") == "SplitCoordinator"
    assert name_of("python -u jobs/train_multimodal.py --config x") == "driver"
    assert name_of("python perceiver_dist/cluster/forked_worker.py --node-id=1") == "requests for a fork"
    assert name_of("gcc x.c") == "other"
