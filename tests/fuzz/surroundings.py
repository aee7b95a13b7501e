"""Surroundings in which a short training runs: variables, folders, users and mounts of a machine that is not ours.

Each either lets the run complete, or ends it with status 2 and one line that says what to do. Mounts and other users
need root; `available` says whether this machine can.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[2]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
STRANGER = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--")
"""A user that is not in the table of users, as in many containers."""
LONG = "a_rather_long_name_as_batch_systems_make_them/job_1234567/another_level_of_it/tmp.t0016"


@dataclass(frozen=True)
class Surroundings:
    """What differs from a usual machine.

    Attributes:
        variables: Environment variables; `{folder}` is the case's own folder. None removes a variable.
        command: What the job's command is appended to.
        setup: Shell commands that are run first, in a mount namespace of their own if there is a mount.
        options: Options of the job.
        line: Part of the one line with which the job ends; "" if it completes.
        said: Part of what a completed job prints.
    """

    variables: dict[str, str | None] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    setup: str = ""
    options: tuple[str, ...] = ()
    line: str = ""
    said: str = ""

    @property
    def available(self) -> bool:
        """Whether this machine can be made like that."""
        if not self.command and "mount" not in self.setup:
            return True
        if os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "unshare"))):
            return False
        # The other user must be able to run this Python. In a shell, since setpriv itself may still do what root may.
        tried = [*self.command, "bash", "-c", f"test -x {sys.executable}"]
        return subprocess.run(tried, check=False).returncode == 0


ALL = {
    "a long TMPDIR": Surroundings({"TMPDIR": "{folder}/" + LONG}),
    "a long RAY_TMPDIR": Surroundings({"RAY_TMPDIR": "{folder}/" + LONG}),
    "a TMPDIR that is a file": Surroundings(
        {"TMPDIR": "{folder}/file"},
        setup="touch file",
        line="TMPDIR is '{folder}/file', where no file can be made (",
    ),
    "a TMPDIR of another user": Surroundings(
        {"TMPDIR": "{folder}/theirs"},
        NOBODY,
        "mkdir -m 700 theirs",
        line="TMPDIR is '{folder}/theirs', where no file can be made (Permission denied)",
    ),
    "no HOME": Surroundings({"HOME": None}),
    "a HOME that cannot be written": Surroundings({"HOME": "/proc"}, NOBODY),
    "a user without a name": Surroundings({"HOME": None, "USER": None, "LOGNAME": None}, STRANGER),
    "a read-only working folder": Surroundings(
        {}, NOBODY, "mkdir -m 777 runs && chmod 555 .", ("--storage.path={folder}/runs",)
    ),
    "a storage of another user": Surroundings(
        {},
        NOBODY,
        "mkdir -m 555 theirs",
        ("--storage.path=theirs",),
        "storage.path is '{folder}/theirs', which cannot be written (",
    ),
    "an ASCII locale": Surroundings({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "an ASCII locale and other paths": Surroundings(
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        options=("--storage.path={folder}/räume",),
        line="the argument '--storage.path={folder}/r\\udcc3\\udca4ume' has bytes that are no ascii text, ",
    ),
    "odd characters in a path": Surroundings(options=("--storage.path={folder}/a b#c%20d?e é",)),
    "no /dev/shm": Surroundings(setup="mount -t tmpfs -o size=0,mode=000 none /dev/shm"),
    "a small /dev/shm": Surroundings(setup="mount -t tmpfs -o size=1m none /dev/shm"),
    "a full disk": Surroundings(
        setup="mkdir disk && mount -t tmpfs -o size=16k none disk && head -c 1M /dev/zero > disk/x 2>/dev/null; true",
        options=("--storage.path=disk",),
        line="storage.path is '{folder}/disk', which cannot be written (",
    ),
    "few open files": Surroundings(setup="ulimit -Sn 512"),
    "MLflow by its variables": Surroundings(
        {
            "MLFLOW_TRACKING_URI": "sqlite:///{folder}/mine.db",
            "MLFLOW_EXPERIMENT_NAME": "mine",
            "MLFLOW_RUN_ID": "0123",
            "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        },
        said="MLflow: sqlite:///{folder}/mine.db (MLFLOW_TRACKING_URI), experiment mine (MLFLOW_EXPERIMENT_NAME); "
        "MLFLOW_RUN_ID is not used: ",
    ),
    "an MLflow that cannot be reached": Surroundings(
        {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        line="tracking: cannot open a run at http://127.0.0.1:9: ",
    ),
    "an MLflow that does not resolve": Surroundings(
        {"MLFLOW_TRACKING_URI": "http://no.such.host.invalid:5000"},
        line="tracking: cannot open a run at http://no.such",
    ),
    "a folder for MLflow": Surroundings(
        {"MLFLOW_TRACKING_URI": "file:{folder}/mlruns"},
        line="tracking: cannot open a run at file:{folder}/mlruns: ",
    ),
    "a proxy that is down": Surroundings(
        {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    ),
    "RAY_ADDRESS=local": Surroundings({"RAY_ADDRESS": "local"}),
    "a Ray client": Surroundings(
        {"RAY_ADDRESS": "ray://127.0.0.1:10001"}, line="RAY_ADDRESS is 'ray://127.0.0.1:10001'"
    ),
    "no devices and many threads": Surroundings({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "64"}),
    "storage that does not resolve": Surroundings(
        {
            "AWS_ENDPOINT_URL": "http://no.such.host.invalid",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        },
        options=("--storage.path=s3://bucket/runs", "--tracking.uri=sqlite:///{folder}/m.db"),
        line="storage.path is 's3://bucket/runs', which cannot be written (",
    ),
    "an unknown kind of storage": Surroundings(
        options=("--storage.path=dbfs2://x/runs", "--tracking.uri=sqlite:///{folder}/m.db"),
        line="storage.path is 'dbfs2://x/runs', which cannot be written (",
    ),
    "storage on a web server": Surroundings(
        options=("--storage.path=http://127.0.0.1:9/runs", "--tracking.uri=sqlite:///{folder}/m.db"),
        line="storage.path is 'http://127.0.0.1:9/runs', which cannot be written (",
    ),
}


def write_run(folder: Path, shards: Path) -> None:
    """Write the configuration of a training of two steps on the squares of `small_run.write_data`."""
    model = {"latents": 4, "width": 16, "heads": 2, "cross_attends": 1, "self_attends_per_block": 1}
    image = {"height": 8, "width": 8, "patch": 2, "bands": 2}
    config = {
        "model": {**model, "image": image, "audio": None, "video": None, "points": None},
        "train": {
            "steps": 2,
            "micro_batch": 4,
            "lanes": 2,
            "num_workers": 1,
            "log_every": 1,
            "checkpoint_every": 2,
        },
        "sources": [
            {
                "name": "squares",
                "train_shards": f"{shards}/squares/train-*.tar",
                "modalities": ["image"],
                "num_classes": 4,
            }
        ],
        "storage": {"path": "runs", "run_name": "r"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def train_in(surroundings: Surroundings, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the training of `write_run` there."""

    def filled(text: str) -> str:
        return text.replace("{folder}", str(folder))

    environment: dict[str, str] = {**os.environ, "PYTHONPATH": str(PROJECT)}
    for name, value in surroundings.variables.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = filled(value)
    job = [sys.executable, f"{PROJECT}/jobs/train_multimodal.py", "--config=run.yaml"]
    command = [*surroundings.command, *job, *map(filled, surroundings.options)]
    script = f'{surroundings.setup or "true"}; exec "$@"'
    namespace = ["unshare", "--mount"] if "mount" in surroundings.setup else []
    return subprocess.run(
        [*namespace, "bash", "-c", script, "bash", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
