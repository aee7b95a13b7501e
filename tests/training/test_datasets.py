"""Datasets of a run: how many readers they have, and what a balanced source draws."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from tar_files import index_of, write_tar

from perceiver_dist.config.run_config import RunConfig, TrainConfig
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.training.datasets import reading_options, training_units
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


def test_a_balanced_source_draws_all_classes_equally_often(tmp_path: Path) -> None:
    labels = [0] * 30 + [1] * 3
    members = [
        (f"{key:02d}.{field}", content)
        for key, label in enumerate(labels)
        for field, content in (("cls", str(label).encode()), ("jpg", b"not decoded"))
    ]
    index = index_of(write_tar(tmp_path / "a.tar", members))
    config = config_for()
    source = replace(config.sources[0], balance=1.0)
    units = [training_units(config, source, index).plan.unit(number) for number in range(15)]
    drawn = Counter(labels[sample] for unit in units for sample in unit)
    # Eight epochs of 60 draws are 15 units of 32.
    assert drawn == {0: 240, 1: 240}
    plain = training_units(config, config.sources[0], index).plan
    assert Counter(labels[sample] for number in range(33) for sample in plain.unit(number)) == {0: 960, 1: 96}
