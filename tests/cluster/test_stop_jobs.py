"""The preStop hook of the head's pod."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import cluster_files as files
from ray.job_submission import JobStatus


class FakeClient:
    """A cluster with an ended job, a running job that takes a while to stop, and a driver that is not a job."""

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self.statuses = [JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.STOPPED]

    def list_jobs(self) -> list[Any]:
        jobs = [("old", JobStatus.SUCCEEDED), ("running", JobStatus.RUNNING), (None, JobStatus.RUNNING)]
        return [SimpleNamespace(submission_id=job, status=status) for job, status in jobs]

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)

    def get_job_status(self, _job: str) -> JobStatus:
        return self.statuses.pop(0)


def test_running_jobs_are_stopped_and_awaited() -> None:
    spec = importlib.util.spec_from_file_location("stop_jobs", files.CLUSTER / "stop_jobs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = FakeClient()
    assert module.stop_jobs(client, poll_seconds=0) == ["running"]
    assert client.stopped == ["running"]
    assert client.statuses == []  # polled until the job had ended
