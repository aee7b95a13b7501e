"""Tests of the unit stream of a rank: the unit that is due or an error, in memory of its own."""

import numpy as np
import pytest
import ray.data
import torch

from perceiver_dist.data.batches import UnitOrderError, UnitStream, to_batch
from pipelines.units.block_format import block_of
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


def stream_of(*blocks: int | list[int]) -> UnitStream:
    """Return a stream of blocks with the given units; a number is a block of one."""
    numbers = [[block] if isinstance(block, int) else block for block in blocks]
    tables = [block_of("speech", block, [make_unit(number) for number in block]) for block in numbers]
    return UnitStream(ray.data.from_arrow(tables).iterator(), CPU, prefetch=1)


@pytest.mark.usefixtures("ray_cluster")
def test_units_that_are_due_become_batches() -> None:
    stream = stream_of(4, 6)
    first, second = stream.take("speech", 4), stream.take("speech", 6)
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
    batch = stream_of(1).take("speech", 1)
    assert (batch.valid.dtype, batch.labels.dtype) == (torch.bool, torch.int64)
    assert (batch.arrays["image"].dtype, batch.arrays["audio"].dtype) == (torch.uint8, torch.int16)
    assert batch.present["audio"].dtype == torch.bool


@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_out_of_order_is_an_error() -> None:
    stream = stream_of(4, 6)
    stream.take("speech", 4)
    with pytest.raises(UnitOrderError) as caught:
        stream.take("speech", 5)
    assert str(caught.value) == (
        "source 'speech': unit 5 is due but unit 6 came; "
        "the order of blocks was lost between the read tasks and this rank"
    )


@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_of_another_source_is_an_error() -> None:
    with pytest.raises(UnitOrderError) as caught:
        stream_of(4).take("music", 4)
    assert str(caught.value) == (
        "source 'music': unit 4 is due but unit 4 of source 'speech' came; "
        "the order of blocks was lost between the read tasks and this rank"
    )


@pytest.mark.usefixtures("ray_cluster")
def test_units_are_taken_from_several_open_blocks() -> None:
    stream = stream_of([0, 2, 4], [1, 3, 5], [6])
    units = [stream.take("speech", number) for number in range(7)]
    assert [unit.unit for unit in units] == list(range(7))
    assert [int(unit.arrays["image"].max()) for unit in units] == list(range(7))


@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_of_an_open_block_that_is_not_its_next_is_an_error() -> None:
    stream = stream_of([0, 2, 4], [1])
    stream.take("speech", 0)
    with pytest.raises(UnitOrderError, match="unit 4 is due but unit 1 came"):
        stream.take("speech", 4)


@pytest.mark.usefixtures("ray_cluster")
def test_the_end_of_the_data_is_an_error_while_a_unit_is_due() -> None:
    stream = stream_of(4)
    stream.take("speech", 4)
    with pytest.raises(UnitOrderError) as caught:
        stream.take("speech", 5)
    assert str(caught.value) == "source 'speech': unit 5 is due but the dataset has ended"


@pytest.mark.usefixtures("ray_cluster")
def test_iteration_yields_all_remaining_units() -> None:
    stream = stream_of(3, [9, 7], 1)
    stream.take("speech", 3)
    assert [batch.unit for batch in stream] == [9, 7, 1]


def test_a_batch_shares_no_memory_with_the_block() -> None:
    unit = make_unit(4)
    for array in unit.values():
        array.flags.writeable = False
    batch = to_batch(unit, CPU)
    tensors = {"valid": batch.valid, "label": batch.labels, **batch.arrays}
    for name, tensor in tensors.items():
        assert not np.shares_memory(tensor.numpy(), unit[name])
        tensor.zero_()
    assert unit["image"].min() == 4
