"""What the driver's process does beside training: start Ray, show the news, sum up."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console

from perceiver_dist.config import RunConfig
from perceiver_dist.progress import ProgressLine, result_table
from perceiver_dist.training.news import News

_SECONDS_BETWEEN_NEWS = 0.5


def start_ray(config: RunConfig) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray in this process.

    A Ray started here has as many CPUs as training and reading need to make progress together, even on a machine
    with fewer cores: they are Ray's units of scheduling, and with too few no data would ever be read.

    Args:
        config: The resolved configuration.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    # A run has some 12 processes whatever the number of cores; Ray warns on the screen at 4 times this number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    workers = math.ceil(config.train.num_workers * config.train.cpus_per_worker)
    readers = config.data.tasks * (len(config.sources) + 1)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, workers + readers),
        include_dashboard=False,
        **quiet,
    )


@contextmanager
def news_on(line: ProgressLine, tracker: Any, total_steps: int) -> Iterator[None]:
    """Show the tracker's news on the progress line while `trainer.fit` holds the main thread.

    Args:
        line: Where to show it.
        tracker: The `Tracker` actor, asked twice a second.
        total_steps: Steps of the whole run.
    """
    done = threading.Event()

    def watch() -> None:
        restarts = 0
        while not done.wait(_SECONDS_BETWEEN_NEWS):
            news: News = ray.get(tracker.news.remote())
            if news.restarts > restarts:
                restarts = news.restarts
                line.message(f"workers were lost: going on from step {news.started_from}")
            if news.step:
                line.update(
                    news.step, total_steps, news.loss, news.samples_per_second, news.data_wait_fraction
                )

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def show_result(result: dict[str, Any], config: RunConfig, folder: str, console: Console) -> None:
    """Print a finished run's table of metrics and where everything is.

    Args:
        result: What result.json holds.
        config: The resolved configuration.
        folder: The run's folder.
        console: Where to print.
    """
    places = {
        "run": folder,
        "checkpoint": result["checkpoint"] or "none",
        "MLflow run": result["mlflow_run_id"],
    }
    if config.tracking.uri and config.tracking.uri.startswith("sqlite"):
        places["UI"] = f"mlflow ui --backend-store-uri {config.tracking.uri}"
    if result["error"]:
        console.print(
            f"training failed at step {result['steps']}: {result['error']}", markup=False, soft_wrap=True
        )
    if result["exit"] == "interrupted":
        console.print(
            f"interrupted: --storage.run_name {config.storage.run_name} goes on from the newest checkpoint"
        )
    console.print(result_table(result["metrics"], places))
