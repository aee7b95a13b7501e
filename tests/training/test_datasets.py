"""Options of reading: how many readers a run has."""

from typing import Any

import pytest
import ray

from perceiver_dist.config.run_config import RunConfig, TrainConfig
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.training.datasets import reading_options
from pipelines.shards.source import DataConfig, SourceConfig


def config_for(tasks: int | None = None, eval_shards: str = "x.tar") -> RunConfig:
    source = SourceConfig("a", "x.tar", ["image"], num_classes=2, eval_shards=eval_shards)
    data = DataConfig() if tasks is None else DataConfig(tasks=tasks)
    return RunConfig(
        ModelConfig(image=ImageInput(height=8, width=8)), [source], train=TrainConfig(lanes=6), data=data
    )


@pytest.mark.usefixtures("ray_cluster")
def test_readers_take_what_the_workers_leave_but_one_cpu_for_evaluations() -> None:
    resources: Any = ray.cluster_resources  # Ray leaves this function without types.
    cpus = int(resources()["CPU"])
    assert reading_options(config_for(), 2, training=True).resource_limits.cpu == cpus - 3
    assert reading_options(config_for(), 2, training=False).resource_limits.cpu == cpus - 2
    assert reading_options(config_for(eval_shards=""), 2, training=True).resource_limits.cpu == cpus - 2


@pytest.mark.usefixtures("ray_cluster")
def test_there_is_a_reader_where_workers_leave_none() -> None:
    assert reading_options(config_for(), 100, training=True).resource_limits.cpu == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_number_of_readers_is_kept_and_so_is_the_order() -> None:
    options = reading_options(config_for(tasks=5), 2, training=True)
    assert options.resource_limits.cpu == 5
    assert options.preserve_order
