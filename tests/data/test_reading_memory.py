"""Memory of reading: what is computed from a configuration, and that a slow rank makes the readers rest below it."""

import sys
from typing import Any

import numpy as np
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle
from ray.data import ExecutionOptions, ExecutionResources
from waiting import wait_until

from perceiver_dist.config.run_config import RunConfig, TrainConfig, WorkerRange
from perceiver_dist.data.batches import UnitStream
from perceiver_dist.data.reading_memory import (
    block_units,
    object_store_limit,
    prefetched_blocks,
    reading_memory,
)
from perceiver_dist.modalities import ImageInput
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.units.block_order import BlockOrder
from pipelines.units.plan import TrainingPlan
from pipelines.units.schedule import Schedule
from pipelines.units.unit_datasource import unit_dataset
from pipelines.units.unit_maker import Unit, UnitMaker

MIB = 2**20
# Ray's workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # Ray does not annotate it


def config_for(lanes: int, workers: int, sources: int, side: int, micro_batch: int) -> RunConfig:
    return RunConfig(
        ModelConfig(image=ImageInput(height=side, width=side)),
        [SourceConfig(f"s{number}", "x.tar", ["image"], num_classes=2) for number in range(sources)],
        train=TrainConfig(
            lanes=lanes, num_workers=WorkerRange(workers, lanes), micro_batch=micro_batch, steps=10
        ),
    )


@given(st.integers(1, 64), st.integers(1, 4), st.sampled_from([8, 64, 224]), st.sampled_from([1, 32, 256]))
def test_a_rank_holds_what_was_computed_at_most(
    lanes: int, sources: int, side: int, micro_batch: int
) -> None:
    config = config_for(lanes, workers=1, sources=sources, side=side, micro_batch=micro_batch)
    unit = side * side * 3 * micro_batch
    blocks = [block_units(config, source, sources) for source in config.sources]
    held, prefetched = lanes * sum(blocks), prefetched_blocks(config, ranks=1) * max(blocks)
    assert prefetched_blocks(config, ranks=1) >= lanes
    assert reading_memory(config)["rank"] >= (held + prefetched) * unit
    # Blocks of more than one unit never take more than 256 MiB together, but for the texts and labels.
    assert max(blocks) == 1 or 2 * held * unit <= 256 * MIB


def test_the_limit_of_the_object_store_grows_with_the_readers() -> None:
    config = config_for(lanes=8, workers=8, sources=1, side=224, micro_batch=32)
    assert object_store_limit(config, readers=1) == 1024 * MIB
    assert object_store_limit(config, readers=100) == 100 * reading_memory(config)["object_store"]


class LargeMaker(UnitMaker):
    """A maker of units of 4.6 MiB that reads nothing."""

    def make(self, number: int, memory: Unit | None = None) -> Unit:
        unit = self._empty_unit(number, memory)
        unit["image"][...] = number % 256
        return unit


@pytest.mark.usefixtures("ray_cluster")
def test_readers_rest_and_release_their_cpus_when_a_rank_is_slow() -> None:
    total: Any = ray.cluster_resources  # Ray leaves these functions without types.
    free: Any = ray.available_resources
    limit, all_cpus = 300 * MIB, total()["CPU"]
    plan = TrainingPlan("photos", samples=100, unit_size=32, chunk_size=4, seed=0)
    inputs = {"image": ImageInput(height=224, width=224)}
    maker = LargeMaker(SourceConfig("photos", "", ["image"], num_classes=2), inputs, SourceIndex([]), plan)
    units = 200
    order = BlockOrder(Schedule({"photos": 1.0}), 1, 0, units, {"photos": 4})
    dataset = unit_dataset({"photos": maker}, order, DataConfig())
    dataset.context.execution_options = ExecutionOptions(
        preserve_order=True, resource_limits=ExecutionResources.for_limits(object_store_memory=limit)
    )

    def stored() -> float:
        return float(total()["object_store_memory"] - free()["object_store_memory"])

    before = stored()
    [shard] = dataset.streaming_split(1, equal=True)
    stream = UnitStream(shard, torch.device("cpu"), prefetch=1)
    stream.take("photos", 0)
    wait_until(lambda: stored() - before > limit / 3 and free().get("CPU") == all_cpus, seconds=300)
    # A reader that has begun a task may finish it.
    assert stored() - before < limit + all_cpus * 96 * MIB
    # They go on when the rank does, from where they were, to the end.
    for number in range(1, units):
        assert int(np.max(stream.take("photos", number).arrays["image"].numpy())) == number
