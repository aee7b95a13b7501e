"""Ray Dataset of units, on a real Ray: blocks of one row, in order, dealt to the ranks in turn."""

import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray import ObjectRef, cloudpickle
from ray.data import ActorPoolStrategy, DataIterator, Dataset
from ray.exceptions import RayTaskError
from tar_files import index_of, write_tar

from perceiver_dist.data.batches import UnitStream
from perceiver_dist.modalities import ImageInput
from perceiver_dist.training.zero.accumulation import units_of_rank
from pipelines.errors import SampleError
from pipelines.permutation import uniform
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.units import block_statistics, scheduling_rest, unit_datasource
from pipelines.units.block_order import BlockOrder, SingleUnits, UnitBlock
from pipelines.units.plan import TrainingPlan
from pipelines.units.schedule import Schedule
from pipelines.units.unit_datasource import (
    Makers,
    TaskDatasource,
    UnitDatasource,
    stored_blocks,
    unit_dataset,
)
from pipelines.units.unit_maker import Unit, UnitMaker

SAMPLES, UNIT_SIZE, LANES = 37, 2, 4
DATA = DataConfig(units_per_task=5, tasks=2, chunk_size=4)

_MAX_WAIT_SECONDS = 300
"""Generous, as it only ends a test that would wait forever."""

pytestmark = pytest.mark.usefixtures("ray_cluster")
# Ray's workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # Ray does not annotate it


class Unchanged:
    """Returns what it is given, as an actor."""

    def __call__(self, row: pa.Table) -> pa.Table:
        return row


class UnevenMaker(UnitMaker):
    """A maker that takes up to 20 ms longer, differently for each unit, so that tasks finish out of order."""

    def make(self, number: int, memory: Unit | None = None) -> Unit:
        time.sleep(0.02 * uniform("delay", number))
        return super().make(number, memory)


@pytest.fixture
def maker(tmp_path: Path) -> UnevenMaker:
    """Return a maker of units whose labels are their sample numbers."""
    members = [(f"{number}.cls", str(number).encode()) for number in range(SAMPLES)]
    return UnevenMaker(
        source=SourceConfig("speech", "x.tar", ["image"], num_classes=SAMPLES),
        inputs={"image": ImageInput(height=2, width=2)},
        index=index_of(write_tar(tmp_path / "x.tar", members)),
        plan=TrainingPlan("speech", SAMPLES, UNIT_SIZE, DATA.chunk_size, seed=0),
    )


def order_of(first: int, stop: int, largest: int = 4, spare: int = 0) -> BlockOrder:
    """Return the blocks of the steps `first` to `stop` - 1."""
    return BlockOrder(Schedule({"speech": 1.0}), LANES, first, stop, {"speech": largest}, spare)


def dataset_of(maker: UnitMaker, blocks: Iterable[UnitBlock], data: DataConfig = DATA) -> Dataset:
    return unit_dataset({"speech": maker}, blocks, data)


def units_of(dataset: Dataset) -> list[Unit]:
    """Return all units of a dataset in order."""
    return [block.unit(row) for block in stored_blocks(dataset, 1) for row in range(len(block.units))]


def take(shard: DataIterator, due: list[int]) -> list[list[int]]:
    """Take units as the training loop does, where another order is an error, and return their labels."""
    stream = UnitStream(shard, torch.device("cpu"), prefetch=2)
    return [stream.take("speech", number).labels.tolist() for number in due]


def check_dealt(maker: UnevenMaker, order: BlockOrder, ranks: int) -> None:
    """Check that each rank gets the units of its lanes in order."""
    shards = dataset_of(maker, order).streaming_split(ranks, equal=True)
    due = [
        [
            unit
            for step in range(order.first_step, order.stop_step)
            for unit in units_of_rank(
                rank, ranks, range(step * LANES, (step + 1) * LANES), order.first_block(step)
            )
        ]
        for rank in range(ranks)
    ]
    with ThreadPoolExecutor(ranks) as pool:
        taken = list(pool.map(take, shards, due))
    assert taken == [[maker.plan.unit(number) for number in numbers] for numbers in due]


def test_each_block_is_one_row_in_order(maker: UnevenMaker) -> None:
    dataset = dataset_of(maker, order_of(0, 7))
    bundles = list(dataset.iter_internal_ref_bundles())
    assert [bundle.num_rows() for bundle in bundles] == [1] * 3 * LANES
    units = [int(unit["unit"][0]) for unit in units_of(dataset)]
    assert units == [
        *range(4),
        *[unit for lane in range(4, 8) for unit in (lane, lane + 4)],
        *[unit for lane in range(12, 16) for unit in range(lane, lane + 16, 4)],
    ]


def test_block_keeps_every_array_of_the_unit(maker: UnevenMaker) -> None:
    expected = maker.make(3)
    [found] = units_of(dataset_of(maker, SingleUnits("speech", 3, 4)))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert np.array_equal(found[name], array), name


def test_arrays_reach_a_rank_as_views_of_the_object_store(maker: UnevenMaker) -> None:
    """No copy is made between the object store and the tensors of the rank."""
    [shard] = dataset_of(maker, order_of(0, 3)).streaming_split(1, equal=True)
    for block in stored_blocks(shard, 1):
        for name, array in block.unit(0).items():
            if array.dtype != object:
                assert not array.flags.owndata, name
                assert not array.flags.writeable, name


@pytest.mark.parametrize("largest", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_block_b_goes_to_rank_b_modulo_world_size(maker: UnevenMaker, world_size: int, largest: int) -> None:
    """Also to 3 ranks, which do not divide the lanes: an equal split drops spare blocks only."""
    check_dealt(maker, order_of(2, 9, largest, spare=LANES - 1 if world_size == 3 else 0), world_size)


def test_sources_share_a_dataset_in_the_order_of_the_schedule(maker: UnevenMaker) -> None:
    plan = TrainingPlan("music", SAMPLES, UNIT_SIZE, DATA.chunk_size, seed=0)
    other = replace(maker, source=replace(maker.source, name="music"), inputs={}, plan=plan)
    schedule = Schedule({"speech": 2.0, "music": 1.0})
    order = BlockOrder(schedule, LANES, 0, 9, {"speech": 2, "music": 4})
    [shard] = unit_dataset({"speech": maker, "music": other}, order, DATA).streaming_split(1, equal=True)
    stream = UnitStream(shard, torch.device("cpu"), prefetch=2)
    for step in range(9):
        name = schedule.source_at(step)
        first = schedule.steps_before(name, step) * LANES
        for unit in range(first, first + LANES):
            batch = stream.take(name, unit)
            assert batch.labels.tolist() == (maker if name == "speech" else other).plan.unit(unit)
            assert list(batch.arrays) == (["image"] if name == "speech" else [])


@pytest.fixture
def streamed_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every dataset one of those that are too long to be planned."""
    monkeypatch.setattr(unit_datasource, "_MAX_PLANNED_TASKS", 0)


@pytest.mark.usefixtures("streamed_ranges")
@pytest.mark.parametrize("world_size", [1, 4])
def test_long_datasets_have_the_same_order(maker: UnevenMaker, world_size: int) -> None:
    check_dealt(maker, order_of(2, 8), world_size)


@pytest.mark.usefixtures("streamed_ranges")
def test_units_of_long_datasets_are_made_by_tasks_of_their_own(maker: UnevenMaker) -> None:
    data = replace(DATA, tasks=1)
    scored = dataset_of(maker, SingleUnits("speech", 0, 12), data).map_batches(
        Unchanged, batch_size=1, batch_format="pyarrow", compute=ActorPoolStrategy(size=1), num_cpus=1
    )
    rows = scored.materialize()
    assert [int(unit["unit"][0]) for unit in units_of(rows)] == list(range(12))
    assert rows.num_blocks() == 12
    assert "->" not in rows.stats().replace("->SplitBlocks", ""), rows.stats()


@pytest.mark.usefixtures("ray_cluster")
def test_a_million_units_start_without_being_planned(maker: UnevenMaker) -> None:
    blocks = SingleUnits("speech", 0, 1_000_000)
    [shard] = dataset_of(maker, blocks).streaming_split(1, equal=True)
    assert take(shard, list(range(3))) == [maker.plan.unit(number) for number in range(3)]
    assert len(TaskDatasource([]).get_read_tasks(-1)) == 1


def test_resumed_dataset_continues_with_its_first_unit(maker: UnevenMaker) -> None:
    whole = [unit["label"].tolist() for unit in units_of(dataset_of(maker, SingleUnits("speech", 0, 12)))]
    resumed = [unit["label"].tolist() for unit in units_of(dataset_of(maker, SingleUnits("speech", 7, 12)))]
    assert resumed == whole[7:]


def test_bad_sample_affects_its_own_row_only(maker: UnevenMaker) -> None:
    few = replace(maker, source=replace(maker.source, num_classes=SAMPLES - 1))
    units = units_of(dataset_of(few, SingleUnits("speech", 0, SAMPLES)))
    found = [list(sample[1:]) for unit in units for sample in unit["quarantined"]]
    reason = "label 36 is out of range 0 .. 35; correct the sample or the source's num_classes"
    assert found == [["36", reason]] * 2  # Two epochs.
    labels = [unit["label"].tolist() for unit in units]
    planned = [maker.plan.unit(number) for number in range(SAMPLES)]
    assert labels == [[min(unit)] * 2 if 36 in unit else unit for unit in planned]


def test_unit_without_a_good_sample_is_an_error_that_names_it(maker: UnevenMaker) -> None:
    few = replace(maker, source=replace(maker.source, label="json.label"))
    with pytest.raises(RayTaskError) as caught:
        dataset_of(few, SingleUnits("speech", 0, SAMPLES)).materialize()
    assert isinstance(caught.value.cause, SampleError)
    assert (
        str(caught.value.cause)
        .splitlines()[0]
        .startswith("source 'speech': all 2 samples of unit 0 are bad; 2 of them, as sample ")
    )


def test_blocks_are_distributed_over_tasks() -> None:
    reference = cast("ObjectRef[Makers]", None)  # Not used before a task runs.
    blocks = list(SingleUnits("speech", 3, 16))
    source = UnitDatasource(reference, [blocks[:5], blocks[5:10], blocks[10:]])
    assert [task.metadata.num_rows for task in source.get_read_tasks(parallelism=100)] == [5, 5, 3]


def test_statistics_of_blocks_do_not_grow_with_the_dataset(
    maker: UnevenMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_statistics, "_MAX_KEPT", 3)
    dataset = dataset_of(maker, order_of(0, 30))
    executor: Any = dataset._create_executor()
    count, most = 0, 0
    for _ in dataset._build_bundle_iterator(executor):
        count += 1
        kept = [len(getattr(operator, "_output_blocks_stats", ())) for operator in executor._topology]
        most = max(most, *kept)
    assert count > 20
    # Those of the blocks that were handed on since the executor's last step.
    assert most < 12


def test_the_scheduling_loop_rests_while_nobody_takes_blocks(
    maker: UnevenMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested = threading.Event()

    def sleep(seconds: float) -> None:
        assert seconds == scheduling_rest._REST_SECONDS
        rested.set()

    monkeypatch.setattr(scheduling_rest, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    dataset = dataset_of(maker, order_of(0, 30))
    blocks = iter(dataset._build_bundle_iterator(dataset._create_executor()))
    next(blocks)
    assert rested.wait(_MAX_WAIT_SECONDS)
    assert len(list(blocks)) > 20
