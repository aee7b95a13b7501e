"""Stop all jobs of the cluster whose head runs here, and wait until they have saved and left.

Kubernetes runs it before it ends the head's pod (cluster/kuberay/raycluster.yaml). Jobs get SIGTERM and, after
RAY_JOB_STOP_WAIT_TIME_S, SIGKILL.
"""

import time

from ray.job_submission import JobSubmissionClient

DASHBOARD = "http://127.0.0.1:8265"


def stop_jobs(client: JobSubmissionClient, seconds_between_looks: float = 1.0) -> list[str]:
    """Stop the jobs that have not ended, and return their ids when all of them have.

    Args:
        client: Of the cluster.
        seconds_between_looks: How often to ask whether they have ended.
    """
    jobs = [
        job.submission_id
        for job in client.list_jobs()
        if job.submission_id is not None and not job.status.is_terminal()
    ]
    for job in jobs:
        client.stop_job(job)
    while not all(client.get_job_status(job).is_terminal() for job in jobs):
        time.sleep(seconds_between_looks)
    return jobs


if __name__ == "__main__":
    stop_jobs(JobSubmissionClient(DASHBOARD))
