"""Copies of host arrays to the training device, beside what the device computes.

On CUDA a copy is asynchronous only from pinned memory, and allocating pinned memory stalls a step. So the arrays of a
unit are packed into one of two pinned buffers that are kept, and go to the device as a whole, in one copy, on a stream
of their own: while the device computes with one unit, the next one's copy runs beside it. Three rules keep it correct:

1. A buffer is filled again only after the copy from it has ended, for which the host waits; with two buffers that copy
   is the one before last.
2. The computing stream waits for the copy, on the device and not on the host.
3. The memory of a batch was allocated on the copying stream, whose next copy must not overwrite it while kernels of the
   computing stream still read it: `record_stream` tells torch's allocator to wait for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from threading import Lock

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 256
"""Bytes between the possible starts of arrays in a buffer: that of allocations on CUDA, which every dtype accepts."""


@dataclass(frozen=True)
class Place:
    """Place of an array in a buffer.

    Attributes:
        start: First byte.
        shape: Shape of the array.
        dtype: Its dtype.
    """

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class StagingBuffer:
    """Host memory into which the arrays of a unit are packed. It is allocated when it has to grow, and kept.

    Args:
        pinned: Whether the memory is pinned.
    """

    def __init__(self, pinned: bool) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._pinned = pinned

    def fill(self, arrays: Mapping[str, np.ndarray]) -> tuple[Tensor, dict[str, Place]]:
        """Copy arrays into the buffer, over what it held.

        Args:
            arrays: Arrays of numbers or booleans, of any shape, by name.

        Returns:
            The used part of the buffer, (bytes,) uint8, and the place of each array in it.
        """
        places, size = {}, 0
        for name, array in arrays.items():
            places[name] = Place(size, array.shape, torch.from_numpy(np.empty(0, array.dtype)).dtype)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if size > len(self._memory):
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        used = self._memory[:size]
        for name, held in unpack(used, places).items():
            np.copyto(held.numpy(), arrays[name])
        return used, places


def unpack(packed: Tensor, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Return the arrays of a buffer, as views of it.

    Args:
        packed: (bytes,) uint8, on any device.
        places: Place of each array, by name.
    """
    views = {}
    for name, place in places.items():
        size = prod(place.shape) * place.dtype.itemsize
        views[name] = packed[place.start : place.start + size].view(place.dtype).view(place.shape)
    return views


class DeviceCopies:
    """Sender of host arrays to one device; it may be used by several threads.

    Args:
        device: The device. On CPUs arrays are merely copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = Lock()
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._slots = [(StagingBuffer(pinned=True), torch.cuda.Event()) for _ in range(2)]  # type: ignore[no-untyped-call]

    def send(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Copy arrays to the device, without waiting for what it computes.

        Args:
            arrays: Arrays of numbers or booleans, of any shape, by name. They may be changed when this returns.

        Returns:
            Tensors of the same shapes and dtypes by name, for use on the current stream.
        """
        if self._device.type != "cuda":
            # Blocks are read-only views of Ray's object store, and a tensor that shares their memory could write to it.
            return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        with self._lock:
            buffer, copied = self._slots[0]
            self._slots.reverse()
            copied.synchronize()
            packed, places = buffer.fill(arrays)
            with torch.cuda.stream(self._stream):
                on_device = packed.to(self._device, non_blocking=True)
                copied.record()
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copied)
        on_device.record_stream(computing)
        return unpack(on_device, places)


@cache
def copies_to(device: torch.device) -> DeviceCopies:
    """Return the sender to a device. There is one per process, so that its buffers are shared.

    Args:
        device: The device.
    """
    return DeviceCopies(device)
