"""preStop hook of the head: stop all jobs of the cluster, and wait until they have saved and ended.

Kubernetes runs it before it terminates the head's pod (cluster/kuberay/raycluster.yaml). Jobs get SIGTERM and, after
RAY_JOB_STOP_WAIT_TIME_S, SIGKILL.
"""

import time

from ray.job_submission import JobSubmissionClient

DASHBOARD = "http://127.0.0.1:8265"
"""Address of the Ray dashboard, which the hook reaches in its own container."""


def stop_jobs(client: JobSubmissionClient, poll_seconds: float = 1.0) -> list[str]:
    """Stop all running jobs, wait until they have ended, and return their ids.

    Args:
        client: Client of the cluster.
        poll_seconds: Seconds between two polls of the jobs' status.
    """
    jobs = [
        job.submission_id
        for job in client.list_jobs()
        # A driver that was not submitted as a job has no submission id, and cannot be stopped as one.
        if job.submission_id is not None and not job.status.is_terminal()
    ]
    # Stop all before waiting for any: they save at the same time.
    for job in jobs:
        client.stop_job(job)
    while not all(client.get_job_status(job).is_terminal() for job in jobs):
        time.sleep(poll_seconds)
    return jobs


if __name__ == "__main__":
    stop_jobs(JobSubmissionClient(DASHBOARD))
