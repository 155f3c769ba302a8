"""Memory of devices that all ranks of one host have mapped, as one of them uses it.

    rank 0   token | contribution      | share of the result   each rank writes to its own memory only, and reads that
    rank 1   token | contribution      | share of the result   of all

What is queued here runs on the current stream of the calling thread, and `working` waits for it: so it comes behind
what the program has queued there, and other ranks may read what was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Self, cast

import numpy as np

from broker import devices
from broker.devices import Device, reducing
from broker.devices.memory import DeviceMemory


class _Pointer(Protocol):
    def copy_from_device_async(self, source: object, size: int, stream: object) -> None: ...

    def copy_from_host_async(self, memory: int, size: int, stream: object) -> None: ...


class DeviceArray(Protocol):
    """What is used of cupy.ndarray."""

    data: _Pointer
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    size: int
    nbytes: int
    flags: devices._Flags
    device: object

    def reshape(self, *shape: int) -> Self: ...

    def view(self, dtype: object) -> Self: ...

    def __getitem__(self, place: object) -> Self: ...

    def __setitem__(self, place: object, value: object) -> None: ...


class Piece(NamedTuple):
    """Some bytes of the memory of the rank at a position."""

    position: int
    offset: int
    size_bytes: int


def view_of(value: object) -> DeviceArray:
    """A device array as the library's own, over the same memory; bfloat16 as its bits.

    Raises:
        InvalidValue: it cannot be read.
    """
    with devices._failing("is not readable"):
        return cast(DeviceArray, devices._view(value))


def device_of(view: DeviceArray) -> Device:
    """Where it is."""
    return Device(int(view.device.id))  # type: ignore[attr-defined]


def flat_bytes(array: DeviceArray) -> DeviceArray:
    """The bytes of an array in C order, over the same memory."""
    return array.reshape(-1).view(np.uint8)


@contextmanager
def working(device: Device) -> Iterator[None]:
    """The device is the current one; when this ends, all is done that was queued on the current stream.

    Raises:
        InvalidValue: the device fails, or has no memory left.
    """
    library = devices._cupy(str(device))
    with devices._failing(f"cannot be had of the ranks on {device}"), library.cuda.Device(device.index):
        try:
            yield
        finally:
            # Also after an error: nothing may go on to use memory that is about to go.
            library.cuda.get_current_stream().synchronize()


def new_array(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> DeviceArray:
    """An array on the current device, of which nobody else knows."""
    return cast(DeviceArray, devices._cupy("arrays").empty(shape, dtype))


def put(memory: DeviceMemory, offset: int, views: Sequence[DeviceArray]) -> None:
    """Queues copies of arrays to somewhere in memory of this process's own, end to end and each in C order."""
    library = devices._cupy(memory.name)
    stream = library.cuda.get_current_stream()
    for view in views:
        if view.nbytes:
            source = view if view.flags.c_contiguous else library.ascontiguousarray(view)
            memory._over(library, offset, view.nbytes).data.copy_from_device_async(source.data, view.nbytes, stream)
            devices.copied_within(view.nbytes)
        offset += view.nbytes


class DeviceWindow:
    """The memory of all ranks, by position, as one of them has mapped it; the one at `position` is its own.

    Attributes:
        results: where in each of them the shares of results begin.
    """

    def __init__(self, memories: Sequence[DeviceMemory], position: int) -> None:
        """Raises:
        InvalidValue: the device fails.
        """
        self.memories = tuple(memories)
        self.position = position
        self.own = memories[position]
        self.device = self.own.device
        self.results = 0
        addresses = np.array([memory.address for memory in memories], np.uint64)
        with working(self.device):
            self._addresses = new_array(addresses.shape, addresses.dtype)
            stream = devices._cupy("addresses").cuda.get_current_stream()
            self._addresses.data.copy_from_host_async(addresses.ctypes.data, addresses.nbytes, stream)

    def at(self, offset: int, size_bytes: int) -> DeviceArray:
        """Some of this rank's own memory."""
        return cast(DeviceArray, self.own._over(devices._cupy(self.own.name), offset, size_bytes))

    def reduce(self, op: str, dtype: str, offset: int, elements: int, out: DeviceArray) -> None:
        """Queues the reduction of elements that lie at the same offset on all ranks, in the order of their positions.

        Args:
            op: of sum, mean, min, max and product.
            dtype: of the elements, by its name on the wire.
            offset: where they are.
            elements: how many.
            out: receives the result: contiguous, and nothing that the ranks read.
        """
        reducing.reduce(op, dtype, self._addresses, len(self.memories), offset, out, elements)

    def fill(self, target: DeviceArray, pieces: Iterable[Piece]) -> None:
        """Queues copies: an array becomes what lies in some places, end to end, in C order."""
        library = devices._cupy(self.own.name)
        stream = library.cuda.get_current_stream()
        room = target if target.flags.c_contiguous else new_array(target.shape, target.dtype)
        flat, start = flat_bytes(room), 0
        for position, offset, size in pieces:
            source = self.memories[position]._over(library, offset, size)
            flat[start : start + size].data.copy_from_device_async(source.data, size, stream)
            start += size
        devices.copied_within(start)
        if room is not target:
            target[...] = room

    def __repr__(self) -> str:
        return (
            f"<DeviceWindow {self.device} position={self.position} of {len(self.memories)} {self.own.size_bytes} bytes>"
        )
