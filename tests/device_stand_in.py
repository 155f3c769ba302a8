"""A stand-in for a machine's GPUs whose memory processes share: cupy_stand_in.py, and a driver beside it.

Memory of a device is an anonymous file. What a driver gives out as an address is a range that nobody may read or write:
whoever touches it on the host dies of SIGSEGV. Only what stands for work of the device goes to the bytes, by another
mapping of the file, when its stream is synchronised. So real processes can share it, be killed, and be seen to leave it
alone. `install` takes the place of cupy and of the driver, in a test or in a process of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import uuid
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from broker import devices
from broker.devices import driver, reducing
from broker.devices.driver import DriverError
from broker.limits_devices import DEVICE_HEADER_BYTES
from clients.publishing import device_out
from tests import cupy_stand_in as stand_in
from tests import kernel_stand_in as kernels
from tests.cupy_stand_in import Array, CUDARuntimeError

if TYPE_CHECKING:
    import pytest

START = DEVICE_HEADER_BYTES
STEP_BYTES = 64 * 1024
NAMES = tuple(str(uuid.UUID(int=number + 1)) for number in range(stand_in.DEVICES))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class _Mapping(NamedTuple):
    device: int
    size_bytes: int
    bytes: np.ndarray


class StandInDriver:
    """See broker/devices/driver.py.

    Attributes:
        left_bytes: what all devices together have left for this process.
        adopted: how often memory was.
        refuses: whether memory cannot be adopted.
    """

    def __init__(self) -> None:
        self.left_bytes = 1 << 40
        self.adopted = 0
        self.refuses = False
        self.mappings: dict[int, _Mapping] = {}
        self._handles: dict[int, int] = {}
        self._last = 100

    def name(self, device: int) -> str:
        return NAMES[device]

    def granularity(self, device: int) -> int:
        return STEP_BYTES

    def make(self, device: int, size_bytes: int) -> int:
        assert size_bytes % STEP_BYTES == 0
        if size_bytes > self.left_bytes:
            raise DriverError("cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY")
        self.left_bytes -= size_bytes
        descriptor = os.memfd_create("device", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size_bytes)
        return self._handle(descriptor)

    def _handle(self, descriptor: int) -> int:
        self._last += 1
        self._handles[self._last] = descriptor
        return self._last

    def export(self, handle: int) -> int:
        return os.dup(self._handles[handle])

    def adopt(self, descriptor: int) -> int:
        if self.refuses:
            raise DriverError("cuMemImportFromShareableHandle: CUDA_ERROR_NOT_SUPPORTED")
        self.adopted += 1
        try:
            return self._handle(os.dup(descriptor))
        except OSError as error:
            raise DriverError("cuMemImportFromShareableHandle: CUDA_ERROR_INVALID_VALUE") from error

    def map(self, handle: int, device: int, size_bytes: int, *, writable: bool) -> int:
        descriptor = self._handles[handle]
        if os.fstat(descriptor).st_size != size_bytes:
            raise DriverError("cuMemMap: CUDA_ERROR_INVALID_VALUE")
        address = _libc.mmap(None, size_bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        shadow = np.frombuffer(mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, access), np.uint8)
        self.mappings[address] = _Mapping(device, size_bytes, shadow)
        return address

    def unmap(self, address: int, size_bytes: int) -> None:
        assert self.mappings.pop(address).size_bytes == size_bytes
        _libc.munmap(address, size_bytes)

    def release(self, handle: int) -> None:
        os.close(self._handles.pop(handle))


def _raw_kernel(mappings: dict[int, _Mapping]) -> type:
    """What stands for cupy.RawKernel: the same lines, compiled for the host (kernel_stand_in.py).

    The first argument of a kernel is an array of addresses.
    """

    class RawKernel:
        def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
            self._code, self._name = code, name

        def compile(self) -> None:
            self._launch = kernels.compiled(self._code, self._name)

        def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[object, ...]) -> None:
            sources, *others = arguments
            assert isinstance(sources, Array)

            def run() -> None:
                where = np.array([mappings[int(each)].bytes.ctypes.data for each in sources._hidden], np.uint64)
                hidden = [each._hidden if isinstance(each, Array) else each for each in others]
                self._launch(grid[0], block[0], where, *hidden)

            stand_in.current_stream().queued.append(run)

    return RawKernel


class _AnyArray(type):
    """All arrays of the stand-in are cupy's."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, Array)


class _Placed(Array, metaclass=_AnyArray):
    """An array over memory that was mapped, as cupy.ndarray makes one of a pointer."""

    def __init__(self, shape: tuple[int, ...], dtype: object, memptr: SimpleNamespace, order: str = "C") -> None:
        memory = memptr.memory
        end = memptr.offset + int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
        assert end <= memory.mapping.size_bytes, "an array ends in its memory"
        hidden = memory.mapping.bytes[memptr.offset : end].view(dtype).reshape(shape, order=order)
        super().__init__(hidden, memory.mapping.device)
        self._memory = memory
        """Keeps the owner."""


def install(*, refuses: bool = False) -> StandInDriver:
    """Takes the place of cupy and of its driver in this process."""
    made = StandInDriver()
    made.refuses = refuses
    module = stand_in.module()

    def unowned(address: int, size: int, owner: object, device_id: int) -> SimpleNamespace:
        mapping = made.mappings.get(address)
        if mapping is None or (mapping.size_bytes, mapping.device) != (size, device_id):
            raise CUDARuntimeError("cudaErrorInvalidValue: nothing is mapped there")
        return SimpleNamespace(mapping=mapping, owner=owner)

    module.ndarray = _Placed  # type: ignore[attr-defined]
    module.cuda.UnownedMemory = unowned
    module.RawKernel = _raw_kernel(made.mappings)  # type: ignore[attr-defined]
    module.cuda.MemoryPointer = lambda memory, offset: SimpleNamespace(memory=memory, offset=offset)
    module.cuda.runtime.free = lambda address: None
    sys.modules["cupy"] = module
    driver.use(made)
    reducing._kernel.cache_clear()
    return made


def installed_for_a_test(monkeypatch: pytest.MonkeyPatch, patience_s: float) -> StandInDriver:
    """As `install`, until the test ends; however busy the machine is, each reader is waited for so long."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(driver, "_drivers", [])
    monkeypatch.setattr(devices, "_counter", devices._Counter())
    monkeypatch.setattr(device_out, "DEVICE_ANSWER_S", patience_s)
    monkeypatch.setattr(device_out, "DEVICE_PATIENCE_S", patience_s)
    return install()


def cupy() -> ModuleType:
    """The stand-in that is installed."""
    return sys.modules["cupy"]
