"""Device memory that can be passed to another process as an open file: the part of CUDA's driver that makes it.

    make ---> handle --export--> descriptor ~~~ SCM_RIGHTS ~~~> descriptor --adopt--> handle
                |                                                                       |
               map                                                                map, read-only
                v                                                                       v
             address                                                                 address

This is the driver's virtual memory management (CUDA Driver API, section Virtual Memory Management; since CUDA 10.2).
The memory is there as long as any process has a handle, a mapping or a descriptor of it (cuMemRelease), so it outlives
whoever made it; with cudaIpcMemHandle it would not.

By ctypes, because it is fourteen functions of a library that is there wherever cupy can do anything, and their
structures have been the same since they came. The sizes in tests/test_device_memory.py are those of cuda.h 13.0.
"""

from __future__ import annotations

import ctypes
import uuid
from typing import Final, Protocol

from broker.errors import InvalidValue

_LIBRARY: Final = "libcuda.so.1"
_PINNED: Final = 1
"""CU_MEM_ALLOCATION_TYPE_PINNED"""
_ON_DEVICE: Final = 1
"""CU_MEM_LOCATION_TYPE_DEVICE"""
_DESCRIPTOR: Final = 1
"""CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR"""
_READ: Final = 1
"""CU_MEM_ACCESS_FLAGS_PROT_READ"""
_READ_WRITE: Final = 3
"""CU_MEM_ACCESS_FLAGS_PROT_READWRITE"""
_CAN_EXPORT: Final = 103
"""CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED"""


class Location(ctypes.Structure):
    """CUmemLocation: where memory is, or who uses it."""

    _fields_ = (("kind", ctypes.c_int), ("number", ctypes.c_int))


class Properties(ctypes.Structure):
    """CUmemAllocationProp: what memory is to be like. What has no name here is 0."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("location", Location),
        ("windows", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class Access(ctypes.Structure):
    """CUmemAccessDesc: who may do what at an address."""

    _fields_ = (("location", Location), ("flags", ctypes.c_int))


class DriverError(RuntimeError):
    """The driver refuses something."""


class Driver(Protocol):
    """What is asked of a driver; the device that is spoken of has a context, and is the current one."""

    def name(self, device: int) -> str:
        """The UUID of a device, which is the same in all processes, as its number is not."""
        ...

    def granularity(self, device: int) -> int:
        """Memory is made and mapped in multiples of so many bytes."""
        ...

    def make(self, device: int, size_bytes: int) -> int:
        """New memory; returns its handle."""
        ...

    def export(self, handle: int) -> int:
        """A descriptor of memory, which its caller is to close."""
        ...

    def adopt(self, descriptor: int) -> int:
        """The handle of memory that was exported, maybe by this process; the descriptor stays its caller's."""
        ...

    def map(self, handle: int, device: int, size_bytes: int, *, writable: bool) -> int:
        """The address of memory for kernels and copies of a device."""
        ...

    def unmap(self, address: int, size_bytes: int) -> None:
        """It is used there no more."""
        ...

    def release(self, handle: int) -> None:
        """The handle is used no more; mappings and descriptors keep the memory."""
        ...


class CudaDriver:
    """The real one."""

    def __init__(self) -> None:
        """Raises:
        OSError: there is no driver here.
        DriverError: it does not start.
        """
        self._library = ctypes.CDLL(_LIBRARY)
        self._call("cuInit", ctypes.c_uint(0))

    def _call(self, name: str, *arguments: object) -> None:
        status = int(self._library[name](*arguments))
        if status:
            told = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(told))
            raise DriverError(f"{name}: {told.value.decode() if told.value else f'status {status}'}")

    def name(self, device: int) -> str:
        """See Driver.

        Raises:
            DriverError: its memory cannot be passed to other processes.
        """
        can, told = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetAttribute", ctypes.byref(can), ctypes.c_int(_CAN_EXPORT), ctypes.c_int(device))
        if not can.value:
            raise DriverError(f"device {device} cannot export memory as a file descriptor")
        self._call("cuDeviceGetUuid_v2", told, ctypes.c_int(device))
        return str(uuid.UUID(bytes=bytes(told)))

    def granularity(self, device: int) -> int:
        """See Driver."""
        size = ctypes.c_size_t()
        properties = _properties(device)
        self._call("cuMemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(properties), ctypes.c_int(0))
        return size.value

    def make(self, device: int, size_bytes: int) -> int:
        """See Driver."""
        handle, properties = ctypes.c_ulonglong(), _properties(device)
        self._call(
            "cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(size_bytes), ctypes.byref(properties),
            ctypes.c_ulonglong(0),
        )  # fmt: skip
        return handle.value

    def export(self, handle: int) -> int:
        """See Driver."""
        descriptor = ctypes.c_int(-1)
        self._call(
            "cuMemExportToShareableHandle", ctypes.byref(descriptor), ctypes.c_ulonglong(handle),
            ctypes.c_int(_DESCRIPTOR), ctypes.c_ulonglong(0),
        )  # fmt: skip
        return descriptor.value

    def adopt(self, descriptor: int) -> int:
        """See Driver."""
        handle = ctypes.c_ulonglong()
        # The descriptor itself stands in the place of a pointer.
        self._call(
            "cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(descriptor),
            ctypes.c_int(_DESCRIPTOR),
        )  # fmt: skip
        return handle.value

    def map(self, handle: int, device: int, size_bytes: int, *, writable: bool) -> int:
        """See Driver. Where a driver has no read-only mappings, it is one that can be written to, which nobody does."""
        address, size = ctypes.c_ulonglong(), ctypes.c_size_t(size_bytes)
        none, nothing = ctypes.c_size_t(0), ctypes.c_ulonglong(0)
        self._call("cuMemAddressReserve", ctypes.byref(address), size, none, nothing, nothing)
        try:
            self._call("cuMemMap", address, size, none, ctypes.c_ulonglong(handle), nothing)
            try:
                self._allow(address, size, device, writable=writable)
            except DriverError:
                self._call("cuMemUnmap", address, size)
                raise
        except DriverError:
            self._call("cuMemAddressFree", address, size)
            raise
        return address.value

    def _allow(self, address: ctypes.c_ulonglong, size: ctypes.c_size_t, device: int, *, writable: bool) -> None:
        access = Access(Location(_ON_DEVICE, device), _READ_WRITE if writable else _READ)
        try:
            self._call("cuMemSetAccess", address, size, ctypes.byref(access), ctypes.c_size_t(1))
        except DriverError:
            if writable:
                raise
            self._allow(address, size, device, writable=True)

    def unmap(self, address: int, size_bytes: int) -> None:
        """See Driver."""
        self._call("cuMemUnmap", ctypes.c_ulonglong(address), ctypes.c_size_t(size_bytes))
        self._call("cuMemAddressFree", ctypes.c_ulonglong(address), ctypes.c_size_t(size_bytes))

    def release(self, handle: int) -> None:
        """See Driver."""
        self._call("cuMemRelease", ctypes.c_ulonglong(handle))

    def __repr__(self) -> str:
        return f"<CudaDriver {_LIBRARY}>"


def _properties(device: int) -> Properties:
    return Properties(_PINNED, _DESCRIPTOR, Location(_ON_DEVICE, device))


_drivers: list[Driver] = []


def driver() -> Driver:
    """The driver of this process.

    Raises:
        InvalidValue: there is none.
    """
    if not _drivers:
        try:
            _drivers.append(CudaDriver())
        except (OSError, DriverError) as error:
            raise InvalidValue("device memory", _LIBRARY, f"cannot be shared here: {error}") from error
    return _drivers[0]


def use(other: Driver) -> None:
    """Takes another driver from here on, as tests do."""
    _drivers[:] = [other]
