"""A whole training run, from configuration to result.json, as the process that starts it sees it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

# Ray reads this when it is imported: how often the controller looks at the workers, which is what one
# `ray.train.report` costs. 2 seconds by default.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import ray
import ray.train
from ray.data import Dataset, ExecutionOptions
from ray.train.torch import TorchTrainer
from rich.console import Console

from perceiver_dist.command_line import to_yaml
from perceiver_dist.config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.model.cost import parameter_count
from perceiver_dist.progress import ProgressLine
from perceiver_dist.tracking import absolute_tracking_uri
from perceiver_dist.training.checkpoint import checkpoint_name, steps_of
from perceiver_dist.training.console import news_on, show_result, start_ray
from perceiver_dist.training.loop import Job, evaluation_dataset, train_worker
from perceiver_dist.training.tracker import News, Tracker
from pipelines.datasource import unit_dataset
from pipelines.demo.resolve import resolve_demo
from pipelines.index import SourceIndex, index_shard
from pipelines.plan import EvaluationPlan, TrainingPlan
from pipelines.schedule import Schedule
from pipelines.storage import absolute_uri, check_writable, expand_shards, join, read_text, write_text
from pipelines.units import UnitMaker

_SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class SourceData:
    """The indexed shards of one source.

    Attributes:
        train: Shards to learn from.
        evaluation: Held-out shards; None if the source names none.
    """

    train: SourceIndex
    evaluation: SourceIndex | None


def run_training(config: RunConfig, console: Console) -> dict[str, Any]:
    """Train, and leave config.yaml, result.json, checkpoints and figures in the run's folder.

    Args:
        config: The configuration; a run name that exists goes on from its last checkpoint.
        console: Where progress and the result table are shown.

    Returns:
        What result.json holds.

    Raises:
        UserError: Something the user can mend; nothing is left half-written.
    """
    config = resolve(config)
    folder = join(config.storage.path, config.storage.run_name or "")
    check_writable(config.storage.path, "storage.path")
    with ProgressLine(console) as line:
        line.message(f"run {config.storage.run_name}: preparing data")
        config = replace(
            config, sources=[resolve_demo(source, config.storage.path) for source in config.sources]
        )
        shards = list_shards(config)
        start_ray(config)
        data = index_sources(config, shards)
        write_text(join(folder, "config.yaml"), to_yaml(config))
        facts = {"parameters": str(parameter_count(config.model, config.heads))}
        tracker: Any = ray.remote(num_cpus=0)(Tracker).remote(config, folder, facts)
        run_id = ray.get(tracker.run_id.remote())
        line.message(f"starting {config.train.num_workers} workers: {_describe(config, data)}")
        outcome = _fit(config, folder, data, tracker, line)
    news: News = ray.get(tracker.news.remote())
    result = _result(config, outcome, news, run_id, folder)
    ray.get(tracker.close.remote("FINISHED" if outcome.exit == "completed" else "FAILED", result))
    if news.user_error:
        raise UserError(news.user_error)
    write_text(join(folder, "result.json"), json.dumps(result, indent=1) + "\n")
    show_result(result, config, folder, console)
    return result


def resolve(config: RunConfig) -> RunConfig:
    """Return the configuration with the run's name, absolute paths and the tracking URI filled in."""
    path = absolute_uri(config.storage.path)
    name = config.storage.run_name or datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S")
    tracking = config.tracking.uri or f"sqlite:///{path}/mlflow.db"
    return replace(
        config,
        storage=replace(config.storage, path=path, run_name=name),
        tracking=replace(config.tracking, uri=absolute_tracking_uri(tracking)),
        data=replace(config.data, index_path=absolute_uri(config.data.index_path or join(path, "index"))),
    )


def list_shards(config: RunConfig) -> dict[str, list[str]]:
    """Return the shards of every source and evaluation dataset by dataset name, without opening them.

    Raises:
        ShardError: A pattern matches nothing.
    """
    shards: dict[str, list[str]] = {}
    for source in config.sources:
        shards[source.name] = expand_shards(source.train_shards, source.name)
        if source.eval_shards:
            shards[evaluation_dataset(source)] = expand_shards(source.eval_shards, source.name)
    return shards


def index_sources(config: RunConfig, shards: dict[str, list[str]]) -> dict[str, SourceData]:
    """Index all shards on the cluster, those known already at no cost.

    Args:
        config: The resolved configuration.
        shards: From `list_shards`.

    Returns:
        The indexed shards by source name.

    Raises:
        UserError: A shard is missing, damaged or empty; the first one found is named.
    """
    task: Any = ray.remote(index_shard)
    pending = {
        name: [task.remote(uri, config.data.index_path) for uri in uris] for name, uris in shards.items()
    }
    try:
        indexes = {name: SourceIndex(ray.get(references)) for name, references in pending.items()}
    except UserError as error:
        raise UserError(str(getattr(error, "cause", error))) from None
    return {
        source.name: SourceData(indexes[source.name], indexes.get(evaluation_dataset(source)))
        for source in config.sources
    }


def make_datasets(
    config: RunConfig, folder: str, data: dict[str, SourceData], tracker: Any
) -> dict[str, Callable[[], Dataset]]:
    """Return a function per dataset that Ray Train calls in its controller at each start of a worker group.

    Args:
        config: The resolved configuration.
        folder: The run's folder, where Ray Train keeps the name of the newest checkpoint.
        data: Indexed shards by source name.
        tracker: Asked whether the run has stopped for an error that a restart cannot mend.
    """
    datasets: dict[str, Callable[[], Dataset]] = {}
    schedule = Schedule(config.weights)
    for source in config.sources:
        inputs = {modality: getattr(config.model, modality) for modality in source.modalities}
        train = config.train
        plan = TrainingPlan(
            source.name,
            data[source.name].train.samples,
            train.micro_batch,
            config.data.chunk_size,
            train.seed,
        )
        maker = UnitMaker(source, inputs, data[source.name].train, plan)
        if schedule.steps_before(source.name, train.steps):
            datasets[source.name] = partial(_training_dataset, config, folder, maker, tracker)
        held_out = data[source.name].evaluation
        if held_out is not None:
            every = EvaluationPlan(held_out.samples, train.micro_batch, train.lanes)
            evaluator = UnitMaker(source, inputs, held_out, every)
            datasets[evaluation_dataset(source)] = partial(
                unit_dataset, evaluator, 0, every.units, config.data
            )
    return datasets


def newest_step(folder: str) -> int:
    """Return the step of the checkpoint that Ray Train restores next in a run's folder, 0 if there is none."""
    snapshot = json.loads(read_text(join(folder, _SNAPSHOT)) or "{}")
    newest = snapshot.get("latest_checkpoint_result")
    return steps_of(newest["checkpoint_dir_name"]) if newest else 0


def _training_dataset(config: RunConfig, folder: str, maker: UnitMaker, tracker: Any) -> Dataset:
    news: News = ray.get(tracker.news.remote())
    if news.user_error:
        raise UserError(news.user_error)
    schedule, train, name = Schedule(config.weights), config.train, maker.source.name
    stop = schedule.steps_before(name, train.steps) * train.lanes
    first = schedule.steps_before(name, newest_step(folder)) * train.lanes
    return unit_dataset(maker, min(first, stop - train.lanes), stop, config.data)


def _cluster_has_gpus() -> bool:
    resources: Any = ray.cluster_resources
    return bool(resources().get("GPU", 0))


@dataclass(frozen=True)
class _Outcome:
    exit: str
    error: str


def _fit(
    config: RunConfig, folder: str, data: dict[str, SourceData], tracker: Any, line: ProgressLine
) -> _Outcome:
    train = config.train
    use_gpu = train.device == "cuda" or (train.device == "auto" and _cluster_has_gpus())
    trainer = TorchTrainer(
        partial(train_worker, Job(config, tracker)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=config.storage.run_name,
            storage_path=config.storage.path,
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=train.keep_checkpoints),
        ),
        datasets={**make_datasets(config, folder, data, tracker)},
        dataset_config=ray.train.DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    )
    with news_on(line, tracker, config.train.steps):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return _Outcome("failed", str(error).strip().splitlines()[-1])
    return _Outcome("completed", "")


def _result(config: RunConfig, outcome: _Outcome, news: News, run_id: str, folder: str) -> dict[str, Any]:
    saved = newest_step(folder)
    steps = news.step or saved
    return {
        "exit": outcome.exit,
        "error": outcome.error,
        "steps": steps,
        "samples_seen": steps * config.train.lanes * config.train.micro_batch,
        "world_size": config.train.num_workers,
        "zero_stage": config.deepspeed.zero_stage,
        "metrics": news.scores,
        "samples_per_second": news.samples_per_second,
        "data_wait_fraction": news.data_wait_fraction,
        "restarts": news.restarts,
        "mlflow_run_id": run_id,
        "checkpoint": join(folder, checkpoint_name(saved)) if saved else None,
    }


def _describe(config: RunConfig, data: dict[str, SourceData]) -> str:
    sources = ", ".join(f"{name} {of.train.samples:,} samples" for name, of in data.items())
    return f"{sources}; ZeRO {config.deepspeed.zero_stage}, {config.train.steps} steps"
