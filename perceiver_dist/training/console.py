"""What the driver's process does beside training: start Ray, show the news, sum up."""

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console

from perceiver_dist.config import RunConfig
from perceiver_dist.progress import ProgressLine, result_table
from perceiver_dist.training.news import News

_SECONDS_BETWEEN_NEWS = 0.5


def cpus_of(config: RunConfig) -> int:
    """Return the CPUs with which training and reading make progress together.

    Args:
        config: The run's configuration.
    """
    workers = math.ceil(config.train.num_workers * config.train.cpus_per_worker)
    return workers + config.data.tasks * (len(config.sources) + 1)


def uses_gpus(config: RunConfig) -> bool:
    """Return whether training takes a GPU per worker; Ray is running.

    Args:
        config: The run's configuration.
    """
    resources: Any = ray.cluster_resources
    return config.train.device == "cuda" or (
        config.train.device == "auto" and bool(resources().get("GPU", 0))
    )


def start_ray(cpus: int, dashboard: bool = False) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray in this process.

    A Ray started here has as many CPUs as are needed, even on a machine with fewer cores: they are Ray's units of
    scheduling, and with too few no data would ever be read.

    Args:
        cpus: CPUs that are needed.
        dashboard: Whether to start Ray's dashboard, which also frees what a killed training held.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    # A run has some 12 processes whatever the number of cores; Ray warns on the screen at 4 times this number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, cpus),
        include_dashboard=dashboard,
        **quiet,
    )


@contextmanager
def news_on(
    line: ProgressLine, tracker: Any, total_steps: int, on_news: Callable[[News], None] | None
) -> Iterator[None]:
    """Show the tracker's news on the progress line while `trainer.fit` holds the main thread.

    Args:
        line: Where to show it.
        tracker: The `Tracker` actor, asked twice a second.
        total_steps: Steps of the whole run.
        on_news: Called with the news as well.
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
            if on_news:
                on_news(news)

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
