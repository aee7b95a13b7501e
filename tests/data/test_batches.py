"""Tests of the unit stream of a rank: the unit that is due or an error, in memory of its own."""

import numpy as np
import pyarrow as pa
import pytest
import ray.data
import torch

from perceiver_dist.data.batches import UnitOrderError, UnitStream, to_batch
from pipelines.units.unit_datasource import unit_block
from pipelines.units.unit_maker import BadSample, Unit

CPU = torch.device("cpu")


def make_unit(number: int) -> Unit:
    return {
        "unit": np.array([number], np.int64),
        "keys": np.array([f"x.tar/{number}", ""], object),
        "valid": np.array([True, False]),
        "label": np.array([number, 0], np.int64),
        "quarantined": np.array([["x.tar", f"{n}", "is damaged"] for n in range(number - 4)], object),
        "image": np.full((2, 4, 4, 3), number, np.uint8),
        "image_present": np.array([True, False]),
        "audio": np.full((2, 8), -number, np.int16),
        "audio_present": np.array([False, False]),
    }


def stream_of(*numbers: int) -> UnitStream:
    table = pa.concat_tables(unit_block(make_unit(number)) for number in numbers)
    return UnitStream(ray.data.from_arrow(table).iterator(), "speech", CPU, prefetch=1)


@pytest.mark.usefixtures("ray_cluster")
def test_units_that_are_due_become_batches() -> None:
    stream = stream_of(4, 6)
    first, second = stream.take(4), stream.take(6)
    assert (first.unit, second.unit) == (4, 6)
    assert first.keys == ["x.tar/4", ""]
    assert first.valid.tolist() == [True, False]
    assert first.labels.tolist() == [4, 0]
    assert set(first.arrays) == set(first.present) == {"image", "audio"}
    assert first.present["image"].tolist() == [True, False]
    assert torch.equal(second.arrays["image"], torch.full((2, 4, 4, 3), 6, dtype=torch.uint8))
    assert torch.equal(second.arrays["audio"], torch.full((2, 8), -6, dtype=torch.int16))
    assert first.quarantined == []
    assert second.quarantined == [
        BadSample("x.tar", "0", "is damaged"),
        BadSample("x.tar", "1", "is damaged"),
    ]
    assert stream.seconds_waited > 0


@pytest.mark.usefixtures("ray_cluster")
def test_batches_keep_the_dtypes_of_the_unit() -> None:
    batch = stream_of(1).take(1)
    assert (batch.valid.dtype, batch.labels.dtype) == (torch.bool, torch.int64)
    assert (batch.arrays["image"].dtype, batch.arrays["audio"].dtype) == (torch.uint8, torch.int16)
    assert batch.present["audio"].dtype == torch.bool


@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_out_of_order_is_an_error() -> None:
    stream = stream_of(4, 6)
    stream.take(4)
    with pytest.raises(UnitOrderError) as caught:
        stream.take(5)
    assert str(caught.value) == (
        "source 'speech': unit 5 is due but unit 6 came; "
        "the order of blocks was lost between the read tasks and this rank"
    )


@pytest.mark.usefixtures("ray_cluster")
def test_the_end_of_the_data_is_an_error_while_a_unit_is_due() -> None:
    stream = stream_of(4)
    stream.take(4)
    with pytest.raises(UnitOrderError) as caught:
        stream.take(5)
    assert str(caught.value) == "source 'speech': unit 5 is due but the dataset has ended"


@pytest.mark.usefixtures("ray_cluster")
def test_iteration_yields_all_remaining_units() -> None:
    stream = stream_of(3, 9, 1)
    stream.take(3)
    assert [batch.unit for batch in stream] == [9, 1]


def test_a_batch_shares_no_memory_with_the_block() -> None:
    row = {name: array[np.newaxis] for name, array in make_unit(4).items()}
    for array in row.values():
        array.flags.writeable = False
    batch = to_batch(row, CPU)
    tensors = {"valid": batch.valid, "label": batch.labels, **batch.arrays}
    for name, tensor in tensors.items():
        assert not np.shares_memory(tensor.numpy(), row[name])
        tensor.zero_()
    assert row["image"].min() == 4
