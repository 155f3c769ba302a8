"""A stand-in for cupy where there is no GPU: a module over numpy, with the few names that broker/devices uses.

It is no measure of speed, and says nothing of CUDA. It shows what the code asks for: how often it copies, on which
stream and device, to which memory, and whether it waits. Whatever is asked of a stream is done when the stream is
synchronised and not before, so who forgets to wait reads old bytes; and numpy cannot read its arrays, as it cannot read
a GPU's.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace, TracebackType
from typing import NamedTuple, Self

import numpy as np

DEVICES = 2
KDL_CUDA = 2


class Copy(NamedTuple):
    """A copy between host and device."""

    direction: str
    size_bytes: int
    pinned: bool
    device: int
    stream: int


copies: list[Copy] = []
_here = threading.local()
_memories: dict[int, np.ndarray] = {}
_pinned: list[tuple[int, int]] = []
_streams: dict[int, Stream] = {}
fail_to_pin = False


class CUDARuntimeError(RuntimeError):
    """As cupy's."""


class Stream:
    """What is queued here is done by synchronize."""

    def __init__(self) -> None:
        self.ptr = 1000 + len(_streams)
        self.queued: list[Callable[[], object]] = []
        self.synchronized = 0
        _streams[self.ptr] = self

    def synchronize(self) -> None:
        self.synchronized += 1
        while self.queued:
            self.queued.pop(0)()

    def __enter__(self) -> Self:
        self._before = getattr(_here, "stream", None)
        _here.stream = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _here.stream = self._before


def current_stream() -> Stream:
    found = getattr(_here, "stream", None)
    if found is None:
        found = _here.stream = Stream()
    return found


def external_stream(pointer: int) -> Stream:
    return _streams[pointer]


class Device:
    """The current one within `with`."""

    def __init__(self, number: int | None = None) -> None:
        self.id = getattr(_here, "device", 0) if number is None else int(number)

    def __enter__(self) -> Self:
        if not 0 <= self.id < DEVICES:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._before = getattr(_here, "device", 0)
        _here.device = self.id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _here.device = self._before


class Pointer:
    """Where an array begins."""

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def ptr(self) -> int:
        return self._array._hidden.ctypes.data

    def _copy(self, direction: str, memory: int, size: int, stream: Stream, *, inwards: bool) -> None:
        assert size == self._array.nbytes, "the whole array is copied"
        assert Device().id == self._array.device.id, "the array's device is the current one"
        pinned = any(start <= memory and memory + size <= end for start, end in _pinned)
        copies.append(Copy(direction, size, pinned, self._array.device.id, stream.ptr))
        target, source = (self.ptr, memory) if inwards else (memory, self.ptr)
        hidden = self._array._hidden
        stream.queued.append(lambda: (ctypes.memmove(target, source, size), hidden)[0])

    def copy_to_host_async(self, memory: int, size: int, stream: Stream) -> None:
        self._copy("to host", memory, size, stream, inwards=False)

    def copy_from_host_async(self, memory: int, size: int, stream: Stream) -> None:
        self._copy("to device", memory, size, stream, inwards=True)

    def copy_from_device_async(self, source: Pointer, size: int, stream: Stream) -> None:
        target, origin = self._array._hidden, source._array._hidden
        assert size == target.nbytes == origin.nbytes, "the whole array is copied"
        assert Device().id == self._array.device.id, "the target's device is the current one"
        copies.append(Copy("within", size, False, self._array.device.id, stream.ptr))
        stream.queued.append(lambda: ctypes.memmove(target.ctypes.data, origin.ctypes.data, size))


class Array:
    """An array on a device. `peek` is for tests: what is there now, whatever is queued."""

    def __init__(self, hidden: np.ndarray, device: int | None = None) -> None:
        self._hidden = hidden
        self.device = Device(device)
        _memories[hidden.ctypes.data] = hidden

    def peek(self) -> np.ndarray:
        return self._hidden.copy()

    @property
    def dtype(self) -> np.dtype:
        return self._hidden.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._hidden.shape

    @property
    def nbytes(self) -> int:
        return self._hidden.nbytes

    @property
    def size(self) -> int:
        return self._hidden.size

    @property
    def flags(self) -> object:
        return self._hidden.flags

    @property
    def data(self) -> Pointer:
        return Pointer(self)

    def __array__(self, *arguments: object, **options: object) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __getitem__(self, place: object) -> Array:
        return Array(self._hidden[place], self.device.id)

    def __setitem__(self, place: object, value: Array) -> None:
        assert isinstance(value, Array), "a kernel reads the device's memory only"
        current_stream().queued.append(lambda: self._hidden.__setitem__(place, value._hidden))

    def reshape(self, *shape: int) -> Array:
        return Array(self._hidden.reshape(*shape), self.device.id)

    def view(self, dtype: object) -> Array:
        return Array(self._hidden.view(dtype), self.device.id)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return interface(self._hidden, stream=current_stream().ptr)

    def __dlpack_device__(self) -> tuple[int, int]:
        return KDL_CUDA, self.device.id

    def __dlpack__(self, *, stream: int | None = None) -> object:
        raise AssertionError("an array of the library's own needs no exchange")


def interface(hidden: np.ndarray, stream: int | None = None, *, read_only: bool = False) -> dict[str, object]:
    """`__cuda_array_interface__`, version 3, of memory that stands for a device's."""
    _memories[hidden.ctypes.data] = hidden
    return {
        "shape": hidden.shape,
        "typestr": hidden.dtype.str,
        "data": (hidden.ctypes.data, read_only),
        "strides": None if hidden.flags.c_contiguous else hidden.strides,
        "stream": stream,
        "version": 3,
    }


class Foreign:
    """An array of another library, by `__cuda_array_interface__` alone."""

    def __init__(self, hidden: np.ndarray, stream: int | None = None, *, read_only: bool = False) -> None:
        self.hidden = hidden
        self.__cuda_array_interface__ = interface(hidden, stream, read_only=read_only)


class Exchanged:
    """An array of another library, by DLPack; `on_export` stands for its waiting for the reader's stream."""

    def __init__(self, hidden: np.ndarray, device: int = 0, kind: int = KDL_CUDA) -> None:
        self.hidden, self.device, self.kind = hidden, device, kind
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.device

    def __dlpack__(self, *, stream: int | None = None, **options: object) -> object:
        self.streams.append(stream)
        return SimpleNamespace(hidden=self.hidden, device=self.device)


def asarray(value: object) -> Array:
    if isinstance(value, Array):
        return value
    told = value.__cuda_array_interface__  # type: ignore[attr-defined]
    hidden = _memories[told["data"][0]]
    assert hidden.shape == told["shape"]
    return Array(hidden, Device().id)


def from_dlpack(value: object) -> Array:
    told = value.__dlpack__(stream=current_stream().ptr)  # type: ignore[attr-defined]
    return Array(told.hidden, told.device)


def empty(shape: tuple[int, ...], dtype: object, order: str = "C") -> Array:
    made = np.empty(shape, dtype, order=order)  # type: ignore[call-overload]
    if made.ndim and made.size and made.flags.c_contiguous:
        # What was there before.
        made.view(np.uint8).fill(0xEE)
    return Array(made)


def array(value: object, device: int = 0) -> Array:
    """For tests: an array on a device with the values of a host array, in its order."""
    return Array(np.array(value, copy=True, order="K"), device)


def ascontiguousarray(value: Array) -> Array:
    packed = Array(np.empty(value.shape, value.dtype), value.device.id)
    current_stream().queued.append(lambda: packed._hidden.__setitem__(..., value._hidden))
    return packed


def alloc_pinned_memory(size: int) -> object:
    if fail_to_pin:
        raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
    memory = np.empty(size + 64, np.uint8)
    _pinned.append((memory.ctypes.data, memory.ctypes.data + memory.nbytes))
    return memory


def module() -> ModuleType:
    """What is to stand in the place of cupy; nothing has been copied yet."""
    copies.clear()
    _pinned.clear()
    _here.__dict__.clear()
    found = ModuleType("cupy")
    found.ndarray = Array  # type: ignore[attr-defined]
    for function in (asarray, from_dlpack, empty, array, ascontiguousarray):
        setattr(found, function.__name__, function)
    found.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device,
        Stream=Stream,
        ExternalStream=external_stream,
        alloc_pinned_memory=alloc_pinned_memory,
        get_current_stream=current_stream,
        runtime=SimpleNamespace(getDeviceCount=lambda: DEVICES, getDevice=lambda: Device().id),
    )
    return found
