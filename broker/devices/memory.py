"""Device memory that processes of one host share: arenas, and what lies in them.

    0         256          256 + block
    +---------+------------+--------------- - - --------+
    | token   | array      | another one                |     version 2 of arenas (docs/wire.md section 13)
    +---------+------------+--------------- - - --------+

Only devices touch it. Who publishes has its array copied there, on the stream of the calling thread, and waits; who
reads has it copied out in the same way when it asks for the value, and then the place is free. So what a reader gets is
memory of its own: nothing that a device still does with it when the program has let go of it can reach the arena.

A descriptor does not tell which memory it is, since the driver's are all of one file. So an arena begins with a token,
and who maps one looks for it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, cast
from weakref import WeakSet

import numpy as np

from broker import devices
from broker.devices import Bytes, Device
from broker.devices.driver import Driver, DriverError, driver
from broker.devices.locks import OwnedLock
from broker.errors import InvalidValue, LimitExceeded
from broker.limits_devices import DEVICE_HEADER_BYTES, DEVICE_TOKEN_BYTES

if TYPE_CHECKING:
    from types import ModuleType


class _Pointer(Protocol):
    def copy_from_device_async(self, source: object, size: int, stream: object) -> None: ...

    def copy_from_host_async(self, memory: int, size: int, stream: object) -> None: ...

    def copy_to_host_async(self, memory: int, size: int, stream: object) -> None: ...


class _Array(Protocol):
    data: _Pointer
    nbytes: int


def names() -> dict[str, Device]:
    """The devices of this process whose memory can be shared, by names that are the same in all processes."""
    found: dict[str, Device] = {}
    for device in devices.available():
        with suppress(DriverError, InvalidValue):
            found[driver().name(device.index)] = device
    return found


class DeviceMemory:
    """An arena in the memory of a device, which this process has made or maps to read.

    Attributes:
        device: who uses it here.
        name: of the device whose memory it is, in all processes.
        size_bytes: its length.
        token: how it begins.
        descriptor: of the memory; -1 once it was closed.
        identity: the number of the descriptor's file, which others may have too.
    """

    __slots__ = (
        "_address", "_driver", "_process", "_unread", "descriptor", "device", "identity", "name", "size_bytes", "token",
    )  # fmt: skip

    def __init__(
        self, device: Device, name: str, handle: int, size_bytes: int, token: bytes, *, writable: bool
    ) -> None:
        """Maps it; `create` and `adopt` do that."""
        self.descriptor = -1
        self._address = 0
        self._driver: Driver = driver()
        self._process = os.getpid()
        self.device, self.name, self.size_bytes, self.token = device, name, size_bytes, token
        self.identity = 0
        self._unread: WeakSet[DevicePayload] = WeakSet()
        self._address = self._driver.map(handle, device.index, size_bytes, writable=writable)

    @classmethod
    def create(cls, device: Device, name: str, size_bytes: int) -> DeviceMemory:
        """New memory for so many bytes besides the header.

        Raises:
            LimitExceeded: the device has none left.
        """
        maker, library = driver(), devices._cupy(name)
        try:
            with library.cuda.Device(device.index):
                # There is a context from here on.
                library.cuda.runtime.free(0)
                step = maker.granularity(device.index)
                size_bytes = -(-(size_bytes + DEVICE_HEADER_BYTES) // step) * step
                handle = maker.make(device.index, size_bytes)
                try:
                    token = secrets.token_bytes(DEVICE_TOKEN_BYTES)
                    memory = cls(device, name, handle, size_bytes, token, writable=True)
                    memory.descriptor = maker.export(handle)
                finally:
                    maker.release(handle)
                memory.identity = os.fstat(memory.descriptor).st_ino
                header = np.frombuffer(token, np.uint8)
                stream = library.cuda.get_current_stream()
                memory._over(library, 0, len(token)).data.copy_from_host_async(header.ctypes.data, len(token), stream)
                stream.synchronize()
        except (DriverError, RuntimeError, MemoryError, OSError) as error:
            raise LimitExceeded("device memory", size_bytes, 0, f"none to be had on {device}: {error}") from error
        return memory

    @classmethod
    def adopt(
        cls, descriptor: int, name: str, size_bytes: int, token: bytes, reader: Device | None = None
    ) -> DeviceMemory:
        """Maps what another process has made, to read; the descriptor stays its caller's.

        Args:
            descriptor: of the memory.
            name: of the device whose memory it is.
            size_bytes: its length.
            token: how it begins.
            reader: the device that is to read it, if not the same.

        Raises:
            InvalidValue: it is of a device that is not here, or is not the memory that was announced.
            LimitExceeded: it cannot be mapped.
        """
        owner = names().get(name)
        if owner is None:
            raise InvalidValue("device memory of", name, "is none of this process's devices")
        device = owner if reader is None else reader
        maker, library = driver(), devices._cupy(name)
        try:
            with library.cuda.Device(device.index):
                library.cuda.runtime.free(0)
                handle = maker.adopt(descriptor)
                try:
                    memory = cls(device, name, handle, size_bytes, token, writable=False)
                finally:
                    maker.release(handle)
                found, stream = np.empty(DEVICE_TOKEN_BYTES, np.uint8), library.cuda.get_current_stream()
                memory._over(library, 0, found.nbytes).data.copy_to_host_async(found.ctypes.data, found.nbytes, stream)
                stream.synchronize()
        except (DriverError, RuntimeError, MemoryError) as error:
            raise LimitExceeded("device memory", size_bytes, 0, f"cannot be mapped on {device}: {error}") from error
        if found.tobytes() != token:
            raise InvalidValue("device memory with token", found.tobytes().hex(), "is not the one that was announced")
        return memory

    @property
    def address(self) -> int:
        """Where it begins, for kernels of its device."""
        return self._address

    def _over(self, library: ModuleType, offset: int, size_bytes: int) -> _Array:
        """An array over some of the bytes. It keeps the memory."""
        cuda = library.cuda
        whole = cuda.UnownedMemory(self._address, self.size_bytes, self, self.device.index)
        return cast(_Array, library.ndarray((size_bytes,), np.uint8, cuda.MemoryPointer(whole, offset)))

    def write(self, offset: int, value: object) -> None:
        """Copies a device array there, in its order. When this returns, the array may be changed.

        Raises:
            InvalidValue: the device fails.
        """
        with devices._failing("cannot be copied to shared memory of its device"):
            view, library = devices._view(value), devices._cupy(self.name)
            with library.cuda.Device(self.device.index):
                source = view if devices._order(view) else library.ascontiguousarray(view)
                target, stream = self._over(library, offset, view.nbytes), library.cuda.get_current_stream()
                target.data.copy_from_device_async(source.data, view.nbytes, stream)
                stream.synchronize()
        devices.copied_within(view.nbytes)

    def view(self, offset: int, size_bytes: int, holder: object) -> DevicePayload:
        """What lies somewhere; it keeps `holder` alive."""
        payload = DevicePayload(self, offset, size_bytes, holder)
        self._unread.add(payload)
        return payload

    def keep(self, parts: Iterable[tuple[int, int]]) -> None:
        """Makes what is still to be read this process's own, so that it stays as it is.

        Raises:
            LimitExceeded: the device has no memory for it.
        """
        for payload in list(self._unread):
            payload.keep()

    def close_descriptor(self) -> None:
        """It is to be passed on to nobody any more."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        self.close_descriptor()
        # A forked child has its parent's addresses, and no device.
        if self._address and os.getpid() == self._process:
            with suppress(DriverError):
                self._driver.unmap(self._address, self.size_bytes)

    def __repr__(self) -> str:
        return f"<DeviceMemory {self.device} {self.size_bytes} bytes fd={self.descriptor}>"


class DevicePayload:
    """The payload of a message that lies in shared memory of a device. Any thread may call."""

    __slots__ = ("__weakref__", "_holder", "_lock", "_memory", "_offset", "_own", "_size_bytes")

    def __init__(self, memory: DeviceMemory, offset: int, size_bytes: int, holder: object) -> None:
        self._memory = memory
        self._offset = offset
        self._size_bytes = size_bytes
        self._holder: object = holder
        self._own: _Array | None = None
        self._lock = OwnedLock()

    def __len__(self) -> int:
        return self._size_bytes

    def _source(self, library: ModuleType) -> _Array:
        own = self._own
        return own if own is not None else self._memory._over(library, self._offset, self._size_bytes)

    def on(self, device: Device, dtype: np.dtype[np.generic], shape: tuple[int, ...], order: str) -> object:
        """An array of one's own on a device, by one copy on the current stream of the calling thread.

        Raises:
            InvalidValue: the device has no memory for it, or fails.
        """
        library = devices._cupy(str(device))
        with self._lock.taken(), devices._failing(f"cannot be made on {device}"), library.cuda.Device(device.index):
            made = library.empty(shape, dtype, order=order)
            self._copy(library, cast(_Array, made))
            return cast(object, made)

    def _copy(self, library: ModuleType, target: _Array) -> None:
        stream = library.cuda.get_current_stream()
        target.data.copy_from_device_async(self._source(library).data, self._size_bytes, stream)
        stream.synchronize()
        devices.copied_within(self._size_bytes)

    def to_host(self) -> Bytes:
        """The bytes in host memory, by one copy.

        Raises:
            InvalidValue: the device fails.
        """
        library = devices._cupy(str(self._memory.device))
        with self._lock.taken(), library.cuda.Device(self._memory.device.index):
            return devices.to_host(self._source(library)).view(np.uint8)

    def keep(self) -> None:
        """Copies it to memory of this process's own, unless it was.

        Raises:
            LimitExceeded: the device has none, or fails.
        """
        library, device = devices._cupy(str(self._memory.device)), self._memory.device
        with self._lock.taken():
            if self._own is not None:
                return
            try:
                with library.cuda.Device(device.index):
                    own = cast(_Array, library.empty((self._size_bytes,), np.uint8))
                    self._copy(library, own)
            except (RuntimeError, MemoryError) as error:
                raise LimitExceeded("device memory", self._size_bytes, 0, f"none on {device}: {error}") from error
            self._own, self._holder = own, None

    def __repr__(self) -> str:
        return f"<DevicePayload {self._size_bytes} bytes at {self._offset} of {self._memory!r}>"
