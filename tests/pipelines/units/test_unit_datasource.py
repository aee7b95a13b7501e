"""Ray Dataset of units, on a real Ray: one row per block, in order, dealt to the ranks in turn."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from ray import ObjectRef, cloudpickle
from ray.data import ActorPoolStrategy, DataIterator
from ray.exceptions import RayTaskError
from tar_files import index_of, write_tar

from perceiver_dist.data.batches import UnitStream
from perceiver_dist.modalities import ImageInput
from pipelines.errors import SampleError
from pipelines.permutation import uniform
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.units import unit_datasource
from pipelines.units.plan import TrainingPlan
from pipelines.units.unit_datasource import UnitDatasource, UnitRangeDatasource, unit_block, unit_dataset
from pipelines.units.unit_maker import Unit, UnitMaker

SAMPLES, UNIT_SIZE, LANES = 37, 2, 4
DATA = DataConfig(units_per_task=5, tasks=2, chunk_size=4)

pytestmark = pytest.mark.usefixtures("ray_cluster")
# Ray's workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # Ray does not annotate it


class Unchanged:
    """Returns what it is given, as an actor."""

    def __call__(self, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return row


class UnevenMaker(UnitMaker):
    """A maker that takes up to 20 ms longer, differently for each unit, so that tasks finish out of order."""

    def make(self, number: int) -> Unit:
        time.sleep(0.02 * uniform("delay", number))
        return super().make(number)


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


def take(shard: DataIterator, due: range) -> list[list[int]]:
    """Take units as the training loop does, where another order is an error, and return their labels."""
    stream = UnitStream(shard, "speech", torch.device("cpu"), prefetch=2)
    return [stream.take(number).labels.tolist() for number in due]


def check_dealt_in_turn(maker: UnevenMaker, first: int, stop: int, world_size: int) -> list[list[list[int]]]:
    """Check that each rank gets its units in order; return the labels of the units of each rank."""
    shards = unit_dataset(maker, first, stop, DATA).streaming_split(world_size, equal=True)
    due = [range(first + rank, stop, world_size) for rank in range(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        taken = list(pool.map(take, shards, due))
    assert taken == [[maker.plan.unit(number) for number in numbers] for numbers in due]
    return taken


def test_each_unit_is_a_block_of_one_row_in_order(maker: UnevenMaker) -> None:
    dataset = unit_dataset(maker, 0, 12, DATA)
    blocks = list(dataset.iter_internal_ref_bundles())
    assert [bundle.num_rows() for bundle in blocks] == [1] * 12
    rows = list(dataset.iter_rows())
    assert [row["unit"].tolist() for row in rows] == [[number] for number in range(12)]
    assert [row["label"].tolist() for row in rows] == [maker.plan.unit(number) for number in range(12)]


def test_block_keeps_every_array_of_the_unit(maker: UnevenMaker) -> None:
    unit = maker.make(3)
    columns = unit_dataset(maker, 3, 4, DATA).take_batch(1, batch_format="numpy")
    assert columns.keys() == unit.keys()
    for name, array in unit.items():
        assert np.array_equal(np.array(columns[name][0]).reshape(array.shape), array), name


def test_arrays_reach_a_rank_as_views_of_the_object_store(maker: UnevenMaker) -> None:
    """No copy is made between the read task that decodes them and the tensors of the rank."""
    [shard] = unit_dataset(maker, 0, 4, DATA).streaming_split(1, equal=True)
    for row in shard.iter_batches(batch_size=1, batch_format="numpy"):
        for name in ("image", "label"):
            assert not row[name].flags.owndata, name
            assert not row[name].flags.writeable, name


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_unit_u_goes_to_rank_u_modulo_world_size(maker: UnevenMaker, world_size: int) -> None:
    first, stop = 2 * LANES, 8 * LANES
    taken = check_dealt_in_turn(maker, first, stop, world_size)
    turns = [unit for units in zip(*taken, strict=True) for unit in units]
    assert sorted(chain(*turns[:LANES])) == [7, 8, 9, 10, 11, 32, 33, 34]  # Step 2 of the golden plan.


def test_units_are_dealt_in_turn_to_ranks_that_do_not_divide_them(maker: UnevenMaker) -> None:
    """Spare units at the end, of which an equal split drops some, keep the others complete."""
    first, stop, ranks = 2 * LANES, 7 * LANES, 3
    shards = unit_dataset(maker, first, stop + ranks - 1, DATA).streaming_split(ranks, equal=True)
    due = [range(first + rank, stop, ranks) for rank in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        taken = list(pool.map(take, shards, due))
    assert taken == [[maker.plan.unit(number) for number in numbers] for numbers in due]


@pytest.fixture
def streamed_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every dataset one of those that are too long to be planned."""
    monkeypatch.setattr(unit_datasource, "_MAX_PLANNED_TASKS", 0)


@pytest.mark.usefixtures("streamed_ranges")
@pytest.mark.parametrize("world_size", [1, 4])
def test_long_datasets_have_the_same_order(maker: UnevenMaker, world_size: int) -> None:
    first, stop = 2 * LANES, 8 * LANES
    check_dealt_in_turn(maker, first, stop, world_size)


@pytest.mark.usefixtures("streamed_ranges")
def test_units_of_long_datasets_are_made_by_tasks_of_their_own(maker: UnevenMaker) -> None:
    data = replace(DATA, tasks=1)
    scored = unit_dataset(maker, 0, 12, data).map_batches(
        Unchanged, batch_size=1, compute=ActorPoolStrategy(size=1), num_cpus=1
    )
    rows = scored.materialize()
    assert [row["unit"].tolist() for row in rows.iter_rows()] == [[number] for number in range(12)]
    assert rows.num_blocks() == 12
    assert "->" not in rows.stats().replace("->SplitBlocks", ""), rows.stats()


@pytest.mark.usefixtures("ray_cluster")
def test_a_million_units_start_without_being_planned(maker: UnevenMaker) -> None:
    [shard] = unit_dataset(maker, 0, 1_000_000, DATA).streaming_split(1, equal=True)
    assert take(shard, range(3)) == [maker.plan.unit(number) for number in range(3)]
    assert UnitRangeDatasource(0, 1_000_000, 5).get_read_tasks(-1).__len__() == 1


def test_resumed_dataset_continues_with_its_first_unit(maker: UnevenMaker) -> None:
    whole = [row["label"].tolist() for row in unit_dataset(maker, 0, 12, DATA).iter_rows()]
    resumed = [row["label"].tolist() for row in unit_dataset(maker, 7, 12, DATA).iter_rows()]
    assert resumed == whole[7:]


def test_bad_sample_affects_its_own_row_only(maker: UnevenMaker) -> None:
    few = replace(maker, source=replace(maker.source, num_classes=SAMPLES - 1))
    rows = unit_dataset(few, 0, SAMPLES, DATA).take_all()
    found = [sample[1:] for row in rows for sample in map(list, row["quarantined"])]
    reason = "label 36 is out of range 0 .. 35; correct the sample or the source's num_classes"
    assert found == [["36", reason]] * 2  # Two epochs.
    labels = [row["label"].tolist() for row in rows]
    planned = [maker.plan.unit(number) for number in range(SAMPLES)]
    assert labels == [[min(unit)] * 2 if 36 in unit else unit for unit in planned]


def test_unit_without_a_good_sample_is_an_error_that_names_it(maker: UnevenMaker) -> None:
    few = replace(maker, source=replace(maker.source, label="json.label"))
    with pytest.raises(RayTaskError) as caught:
        unit_dataset(few, 0, SAMPLES, DATA).materialize()
    assert isinstance(caught.value.cause, SampleError)
    assert (
        str(caught.value.cause)
        .splitlines()[0]
        .startswith("source 'speech': all 2 samples of unit 0 are bad; 2 of them, as sample ")
    )


def test_units_are_distributed_over_tasks() -> None:
    reference = cast("ObjectRef[UnitMaker]", None)  # Not used before a task runs.
    source = UnitDatasource(reference, first=3, stop=16, units_per_task=5)
    assert source.tasks == 3
    assert [task.metadata.num_rows for task in source.get_read_tasks(parallelism=100)] == [5, 5, 3]


def test_unit_becomes_one_row(maker: UnevenMaker) -> None:
    block = unit_block(maker.make(0))
    assert block.num_rows == 1
    assert set(block.column_names) == set(maker.make(0))
