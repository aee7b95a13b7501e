"""Arrays of a unit arrive as they are, through a buffer that is allocated once."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from perceiver_dist.data.device_copies import DeviceCopies, StagingBuffer, unpack

NUMBERS = st.sampled_from(["bool", "uint8", "int16", "int64", "float32"]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(max_dims=3, max_side=40))
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), NUMBERS, min_size=1), min_size=1, max_size=4))
def test_arrays_survive_packing_whatever_the_buffer_held(units: list[dict[str, np.ndarray]]) -> None:
    buffer = StagingBuffer(pinned=False)
    for unit in units:
        packed, places = buffer.fill(unit)
        # The copy to the device.
        found = unpack(packed.clone(), places)
        assert list(found) == list(unit)
        for name, array in unit.items():
            assert found[name].dtype == torch.from_numpy(array).dtype
            np.testing.assert_array_equal(found[name].numpy(), array)


def test_a_buffer_is_allocated_once_for_units_that_do_not_grow() -> None:
    buffer = StagingBuffer(pinned=False)
    places = set()
    for rows in (8, 8, 3, 8, 1):
        packed, _ = buffer.fill({"image": np.ones((rows, 5), np.uint8), "label": np.ones(rows, np.int64)})
        places.add(packed.data_ptr())
    assert len(places) == 1
    packed, _ = buffer.fill({"image": np.ones((400, 5), np.uint8)})
    assert packed.data_ptr() not in places


def test_sent_arrays_are_copies() -> None:
    array = np.arange(6, dtype=np.int16)
    array.flags.writeable = False
    sent = DeviceCopies(torch.device("cpu")).send({"sound": array})["sound"]
    sent.zero_()
    assert array.tolist() == [0, 1, 2, 3, 4, 5]
