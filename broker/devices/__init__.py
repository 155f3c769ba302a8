"""Arrays in the memory of devices: which values are some, and how their bytes get to host memory and back.

    device array --to_host--> pinned host memory --> payload ... payload --> host memory --to_device--> device array
                 one copy                                                                 one copy

What is published from a device is staged in pinned host memory, and what is received for one is copied there when its
value is read; but where publisher and readers are on one host it may pass in memory of the device (memory.py, over the
driver in driver.py). Everything that is known of devices is in this package; cupy is imported when the first device
array, or the first name of a device, is seen.

Streams. A device computes in the order of its streams, behind the back of the program. `to_host` begins behind what the
producer has queued: as `stream` of `__cuda_array_interface__` version 3 says, or as DLPack's exchange arranges, or for
a cupy array on the current stream of the calling thread; and it waits, so that the array may be changed when it
returns. `to_device` and `write_back` copy on the current stream of the calling thread, because cupy's memory is reused
in the order of that stream, and wait too: the array is right on every stream.
"""

from __future__ import annotations

import logging
import operator
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from broker.errors import InvalidValue

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]

HOST: Final = "cpu"
_KIND: Final = "cuda"
_CUDA: Final = (2, 13)
"""kDLCUDA and kDLCUDAManaged, of DLPack."""
_HOST_MEMORY: Final = (1, 3)
"""kDLCPU and kDLCUDAHost."""
_DTYPES: Final = frozenset("?bBhHiIlLqQefdFD")
"""Of numpy's letters, those of the dtypes that cupy has."""
_INSTALL: Final = "pip install 'tensorbus[gpu]', or pip install cupy-cuda12x"
_FAILURES: Final = (RuntimeError, MemoryError, TypeError, ValueError, BufferError)
"""What cupy raises: errors of CUDA are RuntimeErrors, and those of DLPack BufferErrors."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device, by its number in this process."""

    index: int

    def __str__(self) -> str:
        return f"{_KIND}:{self.index}"


class Copies(NamedTuple):
    """Copies between host and devices, and within devices, of this process since it began.

    Attributes:
        to_host: how many; likewise those that follow.
        to_host_bytes: their bytes.
        to_device: the other way.
        to_device_bytes: their bytes.
        pageable: staging buffers that could not be pinned.
        within: from device memory to device memory, into and out of what processes share.
        within_bytes: their bytes.
        detours: arrays that went through host memory although this client shares device memory; why is warned of.
    """

    to_host: int = 0
    to_host_bytes: int = 0
    to_device: int = 0
    to_device_bytes: int = 0
    pageable: int = 0
    within: int = 0
    within_bytes: int = 0
    detours: int = 0


class _Flags(Protocol):
    c_contiguous: bool
    f_contiguous: bool


class _Pointer(Protocol):
    def copy_to_host_async(self, memory: int, size: int, stream: object) -> None: ...

    def copy_from_host_async(self, memory: int, size: int, stream: object) -> None: ...


class _DeviceArray(Protocol):
    """What is used of cupy.ndarray."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    nbytes: int
    flags: _Flags
    data: _Pointer
    device: object

    def __setitem__(self, place: object, value: object) -> None: ...


class _Tensor(Protocol):
    """What is used of torch.Tensor."""

    dtype: object

    def detach(self) -> Self: ...

    def view(self, dtype: object) -> Self: ...


class _Counter:
    """What was copied, counted by whichever thread copies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = self._told = Copies()
        self._warned: set[str] = set()

    @property
    def total(self) -> Copies:
        return self._total

    def add(self, counted: Copies) -> None:
        """Something was copied."""
        with self._lock:
            self._total = Copies(*map(operator.add, self._total, counted))

    def untold(self, *, within: bool) -> Copies:
        """What was copied since the last call; what has to do with shared device memory only if `within`."""
        with self._lock:
            told, self._told = self._told, self._total
            if not within:
                self._told = self._total._replace(
                    within=told.within, within_bytes=told.within_bytes, detours=told.detours
                )
            return Copies(*map(operator.sub, self._told, told))

    def warn_not_pinned(self, what: str, cause: object) -> None:
        """Warns that copies are slower than they could be, once of each thing."""
        if self._is_new(what):
            log.warning("device.not_pinned what=%r cause=%s", what, cause)

    def warn_of_detour(self, why: str, cause: object) -> None:
        """Warns that an array takes the way through the host, once of each reason."""
        if self._is_new(why):
            log.warning("device.detour why=%r cause=%s", why, cause)

    def _is_new(self, what: str) -> bool:
        with self._lock:
            known = what in self._warned
            self._warned.add(what)
        return not known


_counter: Final = _Counter()


def copies() -> Copies:
    """How often and how much was copied between host and devices in this process."""
    return _counter.total


def untold_copies(*, within: bool) -> Copies:
    """As `copies`, since the last call: for whoever reports it. Of what has to do with shared device memory, which not
    every broker knows of, only if `within`; the rest waits for a call that asks for it."""
    return _counter.untold(within=within)


def _cupy(what: str) -> ModuleType:
    """The library.

    Raises:
        InvalidValue: it is not installed, or finds no driver; `what` is what it was needed for.
    """
    try:
        import cupy
    except ImportError as error:
        raise InvalidValue("device array", what, f"needs cupy, which is not installed: {_INSTALL}") from error
    return cast("ModuleType", cupy)


def available() -> list[Device]:
    """The devices of this process; none without cupy or a driver."""
    try:
        return [Device(index) for index in range(_cupy("devices").cuda.runtime.getDeviceCount())]
    except (InvalidValue, RuntimeError):
        return []


def problem() -> str:
    """Why there are no devices here; nothing when there are some."""
    try:
        count = _cupy("devices").cuda.runtime.getDeviceCount()
    except (InvalidValue, RuntimeError) as error:
        return error.problem if isinstance(error, InvalidValue) else str(error)
    return "" if count else "this machine has no CUDA device"


def read_device(text: object) -> Device | None:
    """The device of a name: `cuda:0`, or `cuda` for the current one; None for `cpu` and None.

    Raises:
        InvalidValue: it is no such name, there is no such device here, or cupy is missing.
    """
    if text is None or text == HOST:
        return None
    kind, colon, number = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind != _KIND or (colon and not (number.isascii() and number.isdigit())):
        raise InvalidValue("device", text, f"is none of {HOST}, {_KIND} and {_KIND}:0, {_KIND}:1, ...")
    library = _cupy(str(text))
    present = available()
    if not colon and present:
        return Device(int(library.cuda.runtime.getDevice()))
    device = Device(int(number or 0))
    if device not in present:
        found = ", ".join(map(str, present)) or f"no device: {problem()}"
        raise InvalidValue("device", text, f"does not exist here; there is {found}")
    return device


def is_device_array(value: object) -> bool:
    """Whether a value is an array that the host cannot read.

    Raises:
        InvalidValue: it is one on a device of a kind that is not known here.
    """
    if type(value) is np.ndarray or value is None or isinstance(value, (bool, int, float, str, bytes)):
        return False
    if _is_tensor(value):
        # Its __cuda_array_interface__ raises for many tensors.
        return getattr(value, "is_cuda", False) is True
    if hasattr(value, "__cuda_array_interface__"):
        return True
    if not hasattr(value, "__dlpack_device__"):
        return False
    kind, index = value.__dlpack_device__()
    if int(kind) in _HOST_MEMORY:
        return False
    if int(kind) not in _CUDA:
        raise InvalidValue(
            "array on a device", f"kind {int(kind)} of DLPack, number {index}", "only those of CUDA can be read"
        )
    return True


def _is_tensor(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def holds_device_array(value: object) -> bool:
    """Whether a value is a device array, or a list, tuple or dict of arrays with one among them."""
    if isinstance(value, dict):
        return any(map(is_device_array, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_device_array, value))
    return is_device_array(value)


def is_read_only(value: object) -> bool:
    """Whether the owner of a device array says that it must not be written to."""
    if _is_tensor(value):
        return False
    interface = getattr(value, "__cuda_array_interface__", None)
    return bool(interface and interface["data"][1])


class Form(NamedTuple):
    """What a device array is like.

    Attributes:
        device: where it is.
        size_bytes: of its elements.
        like: has its dtype, shape and flags.
    """

    device: Device
    size_bytes: int
    like: Array


def form_of(value: object) -> Form:
    """What a device array is like; a strided one as it is when it was packed.

    Raises:
        InvalidValue: it cannot be read.
    """
    with _failing("is not readable"):
        view = _view(value)
        # Zeros that nobody has touched take no memory.
        like = np.zeros(view.shape, view.dtype, order="F" if _order(view) == "F" else "C")
        return Form(Device(int(view.device.id)), view.nbytes, like)  # type: ignore[attr-defined]


def size_of(value: object) -> int:
    """Bytes of a device array's elements.

    Raises:
        InvalidValue: it cannot be read.
    """
    known = getattr(value, "nbytes", None)
    return known if isinstance(known, int) else form_of(value).size_bytes


def device_of(value: object) -> Device:
    """Where a device array is."""
    with _failing("is not readable"):
        return Device(int(_view(value).device.id))  # type: ignore[attr-defined]


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Converts what the library raises."""
    try:
        yield
    except InvalidValue:
        raise
    except _FAILURES as error:
        raise InvalidValue("device array", type(error).__name__, f"{what}: {error}") from error


def _view(value: object) -> _DeviceArray:
    """A cupy array over the memory of a device array, behind the work that its producer has queued."""
    library = _cupy(type(value).__name__)
    if isinstance(value, library.ndarray):
        return cast(_DeviceArray, value)
    if _is_tensor(value):
        tensor = cast(_Tensor, value).detach()
        if str(tensor.dtype) == "torch.bfloat16":
            # Whoever has a tensor has imported torch. cupy does not have the dtype, so it gets the bits.
            tensor = tensor.view(sys.modules["torch"].int16)
        return cast(_DeviceArray, library.from_dlpack(tensor))
    if hasattr(value, "__dlpack__"):
        return cast(_DeviceArray, library.from_dlpack(value))
    interface = cast("dict[str, object]", value.__cuda_array_interface__)  # type: ignore[attr-defined]
    if interface.get("mask") is not None:
        raise InvalidValue("device array", type(value).__name__, "has a mask, which cannot be sent; send its parts")
    stream = interface.get("stream")
    if stream is not None:
        # None says that there is nothing to wait for; 1 and 2 are the default streams.
        library.cuda.ExternalStream(stream).synchronize()
    return cast(_DeviceArray, library.asarray(value))


def _order(array: _DeviceArray | Array) -> str:
    """How an array lies in memory: `C`, `F`, or nothing."""
    flags = array.flags
    return "C" if flags.c_contiguous else "F" if flags.f_contiguous else ""


def host_memory(size_bytes: int) -> Bytes:
    """Host memory that a device can read and write by itself; ordinary one, with a warning, when there is none left."""
    if not size_bytes:
        return np.empty(0, np.uint8)
    try:
        memory = _cupy("pinned host memory").cuda.alloc_pinned_memory(size_bytes)
    except _FAILURES as error:
        _counter.warn_not_pinned("host memory cannot be pinned, so copies from devices are slower", error)
        _counter.add(Copies(pageable=1))
        return np.empty(size_bytes, np.uint8)
    return np.frombuffer(memory, np.uint8, size_bytes)


def to_host(value: object) -> Array:
    """The elements of a device array in host memory, in the same order: one copy, of a strided one after it was packed
    on the device. When this returns, the device array may be changed.

    Raises:
        InvalidValue: cupy is missing, or cannot read it.
    """
    with _failing("cannot be copied to the host"):
        view = _view(value)
        library = _cupy("copying")
        with library.cuda.Device(view.device.id):  # type: ignore[attr-defined]
            source = view if _order(view) else cast(_DeviceArray, library.ascontiguousarray(view))
            host = host_memory(source.nbytes)
            if source.nbytes:
                stream = library.cuda.get_current_stream()
                source.data.copy_to_host_async(host.ctypes.data, source.nbytes, stream)
                stream.synchronize()
                _counter.add(Copies(to_host=1, to_host_bytes=source.nbytes))
        order = "F" if _order(source) == "F" else "C"
        return host.view(source.dtype).reshape(source.shape, order=order)  # type: ignore[call-overload, no-any-return]


def copied_within(size_bytes: int) -> None:
    """Something was copied from device memory to device memory."""
    _counter.add(Copies(within=1, within_bytes=size_bytes))


def detour(why: str = "", cause: object = "") -> None:
    """An array goes through host memory although it might not have to; without a reason, for the last one's."""
    if why:
        _counter.warn_of_detour(why, cause)
    _counter.add(Copies(detours=1))


def warn_of_detour(why: str, cause: object) -> None:
    """Warns that arrays are going to take the way through the host, once of each reason."""
    _counter.warn_of_detour(why, cause)


def copied_otherwise(size_bytes: int, why: str) -> None:
    """Another library has copied a device array to the host, to memory that is not pinned."""
    _counter.warn_not_pinned("a device array is copied to memory that is not pinned", why)
    _counter.add(Copies(to_host=1, to_host_bytes=size_bytes, pageable=1))


def host_like(value: object) -> Array:
    """Host memory of the shape, dtype and order of a device array, with nothing in it yet."""
    with _failing("is not readable"):
        view = _view(value)
        order = "F" if _order(view) == "F" else "C"
        memory = host_memory(view.nbytes).view(view.dtype)
        return memory.reshape(view.shape, order=order)  # type: ignore[call-overload, no-any-return]


def to_device(value: object, device: Device) -> object:
    """A value with its arrays on a device, each copied there once; lists and dicts are made anew.

    Args:
        value: an array, or lists and dicts with arrays in them; whatever else is in it stays.
        device: where they are to be.

    Raises:
        InvalidValue: the device cannot hold an array of this dtype, or has no memory left.
    """
    if isinstance(value, np.ndarray):
        return _array_to_device(value, device)
    if isinstance(value, dict):
        return {key: to_device(inner, device) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(inner, device) for inner in value)
    return value


def _array_to_device(array: Array, device: Device) -> object:
    if array.dtype.char not in _DTYPES or not array.dtype.isnative:
        told = array.dtype.str if array.dtype.char in _DTYPES else array.dtype.name
        raise InvalidValue(
            "array for a device of dtype",
            told,
            f"{device} cannot hold it through cupy; read it with value_on('{HOST}'), or send another dtype",
        )
    library = _cupy(str(device))
    with _failing(f"cannot be made on {device}"), library.cuda.Device(device.index):
        if not _order(array):
            array = np.ascontiguousarray(array)
        made = library.empty(array.shape, array.dtype, order=_order(array))
        _fill(library, cast(_DeviceArray, made), array)
        return cast(object, made)


def _fill(library: ModuleType, target: _DeviceArray, array: Array) -> None:
    """Copies an array to a device array that lies in memory as it does. Its device is the current one."""
    if array.nbytes:
        stream = library.cuda.get_current_stream()
        target.data.copy_from_host_async(array.ctypes.data, array.nbytes, stream)
        stream.synchronize()
        _counter.add(Copies(to_device=1, to_device_bytes=array.nbytes))


def write_back(value: object, array: Array) -> None:
    """Gives a device array the elements of a host array of its shape: one copy, if both lie in memory alike.

    Args:
        value: on whatever device.
        array: of its shape, and of its dtype or, for bfloat16, one of as many bytes.

    Raises:
        InvalidValue: the device fails; what is in the array then is not known.
    """
    with _failing("cannot be written to"):
        view = _view(value)
        library = _cupy("copying")
        with library.cuda.Device(view.device.id):  # type: ignore[attr-defined]
            if not _order(array):
                array = np.ascontiguousarray(array)
            order = _order(array)
            alike = view.flags.c_contiguous if order == "C" else view.flags.f_contiguous
            target = view if alike else cast(_DeviceArray, library.empty(view.shape, view.dtype, order=order))
            _fill(library, target, array)
            if target is not view:
                view[...] = target
                library.cuda.get_current_stream().synchronize()
