"""Memory that processes of one host share: an anonymous file that one of them writes and all map.

    memfd_create     a file without a name: nothing to clean up, it is gone with its last mapping and descriptor
    0   128               128 + block                                  size_bytes
    +---+-----------------+--------------- - - ------------------------+
    |   | bytes of a message | bytes of another one ...                |   version 1: nothing but payloads, no header:
    +---+-----------------+--------------- - - ------------------------+   what lies where is said in frames
    F_SEAL_SHRINK, F_SEAL_GROW    the file has this length for ever: no access to a mapping can fault
    F_SEAL_FUTURE_WRITE           only its maker's first mapping can write; all later ones are read-only
    F_SEAL_SEAL                   and so it stays

A board (docs/wire.md section 14) is such a file too, but for F_SEAL_FUTURE_WRITE: all who have it write to it.

Whoever adopts a file from somebody else checks length and seals before mapping it, so a peer that lies can neither
crash the process nor let third ones change what was sent. What its maker writes, and when, is up to the maker.

Pages of 4 KiB cost their maker and each reader a fault apiece, which takes longer than to fill and to read them. So a
long file is mapped here where large pages fit (2 MiB, a power of two), and `prepare` has the system make a part of such
pages at once, which it does whatever it says of huge pages for shared memory. See madvise(2), MADV_COLLAPSE. Engines
map boards by themselves, anywhere.

A view holds whatever object it is told to, so that the end of the last view is the end of that object, and a mapping
lives as long as anything in it is used. Who has to give memory back before all views are gone puts memory of its own in
the place of the file, under the views. See memfd_create(2), fcntl(2), File Sealing, and mremap(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import numpy as np
import numpy.typing as npt

from broker.errors import InvalidValue, LimitExceeded
from broker.limits import ARENA_BYTES_MAX, LARGE_PAGE_BYTES, SHARED_PAGE_BYTES
from broker.transport.held import AVAILABLE, hold

VERSION: Final = 1
"""Of the layout above."""
_FUTURE_WRITE: Final = 0x10
"""F_SEAL_FUTURE_WRITE of <linux/fcntl.h>, since Linux 5.1, which Python 3.11 does not name."""
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _FUTURE_WRITE | fcntl.F_SEAL_SEAL
_NO_EXEC: Final = 0x8
"""MFD_NOEXEC_SEAL of <linux/memfd.h>, since Linux 6.3: nobody executes the file, on which a system may insist
(vm.memfd_noexec)."""
_COMMON_SEALS: Final = _SEALS & ~_FUTURE_WRITE
_FAILED: Final = ctypes.c_void_p(-1).value
_NO_RESERVE: Final = 0x4000
"""MAP_NORESERVE of <linux/mman.h>."""
_MOVE_TO: Final = 1 | 2
"""MREMAP_MAYMOVE and MREMAP_FIXED of <linux/mman.h>."""
_FIXED: Final = 0x10
"""MAP_FIXED of <linux/mman.h>."""
_COLLAPSE: Final = 25
"""MADV_COLLAPSE of <linux/mman.h>, since Linux 6.1."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
# Python's mmap keeps a descriptor of its own for each mapping, and many mappings would use up a process's descriptors.
_mmap: Final = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap: Final = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_munlock: Final = _libc.munlock
_munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mprotect: Final = _libc.mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mremap: Final = _libc.mremap
_mremap.restype = ctypes.c_void_p
_mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_madvise: Final = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Handle:
    """A descriptor of its own, which is closed with the last reference to this."""

    __slots__ = ("__weakref__", "descriptor")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        _close(descriptor)


class _Held(npt.NDArray[np.uint8]):
    """As held.Held, where that is not compiled."""

    holder: object


class SharedMemory:
    """One mapped file. Views of it may be used and let go of on any thread.

    Attributes:
        size_bytes: its length.
        identity: the file's number, the same in all processes of the host.
        descriptor: of the file; -1 once it was closed.
    """

    __slots__ = ("_address", "_bytes", "_mapped_bytes", "_writable", "descriptor", "identity", "size_bytes")

    def __init__(self, descriptor: int, size_bytes: int, protection: int, mapped_bytes: int = 0) -> None:
        """Maps a file, or its beginning; `create` and `adopt` do that."""
        self.descriptor = -1
        self._address = None
        self._mapped_bytes = mapped_bytes or size_bytes
        self._address = _mapped(descriptor, self._mapped_bytes, protection)
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self.identity = os.fstat(descriptor).st_ino
        # Fewer faults and look-ups where the system has huge pages for shared memory; it may refuse.
        _madvise(self._address, self._mapped_bytes, mmap.MADV_HUGEPAGE)
        # A core dump would make all pages that nobody has written to.
        _madvise(self._address, self._mapped_bytes, mmap.MADV_DONTDUMP)
        self._bytes = (ctypes.c_ubyte * self._mapped_bytes).from_address(self._address)
        self._writable = bool(protection & mmap.PROT_WRITE)

    @classmethod
    def create(cls, size_bytes: int, *, common: bool = False, mapped_bytes: int = 0) -> SharedMemory:
        """New memory, which this process alone may write to; or, if it is common, whoever has it.

        Args:
            size_bytes: of the file; made whole pages.
            common: whether others may write to it.
            mapped_bytes: whole pages at its beginning, which is all that this process sees of it; 0 for all.

        Raises:
            LimitExceeded: it is too long, or the system has no memory or no descriptor for it.
            InvalidValue: the system cannot seal memory so.
        """
        size_bytes = _whole(size_bytes, SHARED_PAGE_BYTES)
        if size_bytes > ARENA_BYTES_MAX:
            raise LimitExceeded("arena_bytes_max", size_bytes, ARENA_BYTES_MAX)
        descriptor = -1
        try:
            descriptor = _anonymous_file()
            # Who is given it for reading only must not open it again for writing through /proc: no other user may.
            os.fchmod(descriptor, stat.S_IRUSR)
            os.ftruncate(descriptor, size_bytes)
            memory = cls(descriptor, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mapped_bytes)
        except OSError as error:
            _close(descriptor)
            raise LimitExceeded("shared memory", size_bytes, 0, f"none to be had: {error.strerror}") from error
        try:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _COMMON_SEALS if common else _SEALS)
        except OSError as error:
            raise InvalidValue("shared memory", size_bytes, f"cannot be sealed here: {error.strerror}") from error
        return memory

    @classmethod
    def adopt(cls, descriptor: int, size_bytes: int, *, common: bool = False, read_only: bool = False) -> SharedMemory:
        """Maps what another process has made, read-only if it is not common or is to be; the descriptor is closed if
        that fails.

        Raises:
            InvalidValue: it is not of this length, or not sealed so that it stays so.
            LimitExceeded: it cannot be mapped.
        """
        try:
            if not 0 < size_bytes <= ARENA_BYTES_MAX or os.fstat(descriptor).st_size != size_bytes:
                raise InvalidValue("shared memory of bytes", size_bytes, "is not the length of its file, or too long")
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            needed = _COMMON_SEALS if common else _SEALS
            if seals & needed != needed:
                raise InvalidValue("shared memory with seals", seals, f"needs {needed}, or it could shrink or change")
            writable = common and not read_only
            return cls(descriptor, size_bytes, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        except OSError as error:
            _close(descriptor)
            raise LimitExceeded("shared memory", size_bytes, 0, f"cannot be mapped: {error.strerror}") from error
        except InvalidValue:
            _close(descriptor)
            raise

    def prepare(self, offset: int, size_bytes: int) -> bool:
        """Has the system make a part of large pages, if it can; says whether it has.

        Args:
            offset: of the part, a multiple of LARGE_PAGE_BYTES; where each page begins a byte is set to zero.
            size_bytes: of the part; what is left of the last page comes with it, if the file has all of that.
        """
        whole_pages = self._mapped_bytes // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
        end = min(_whole(offset + size_bytes, LARGE_PAGE_BYTES), whole_pages)
        if self._address is None or end <= offset:
            return False
        # The system collapses what has a page already.
        for start in range(offset, end, LARGE_PAGE_BYTES):
            self._bytes[start] = 0
        return bool(_madvise(self._address + offset, end - offset, _COLLAPSE) == 0)

    def view(self, offset: int, size_bytes: int, holder: object) -> memoryview:
        """Some of the bytes; they, and whatever is made of them without a copy, keep `holder` alive.

        Args:
            offset: of the first byte.
            size_bytes: how many.
            holder: must keep this memory alive.

        Raises:
            ValueError: they do not all lie here.
        """
        if self._address is None or offset < 0 or size_bytes < 0 or offset + size_bytes > self._mapped_bytes:
            raise ValueError(f"{size_bytes} bytes at {offset} of {self!r}")
        if AVAILABLE:
            return hold(holder, self._address + offset, size_bytes, self._writable)
        # Not a slice of another array: numpy would take that one as the base of what is made of the part.
        part = _Held(size_bytes, np.uint8, self._bytes, offset)  # type: ignore[arg-type]
        part.flags.writeable = self._writable
        part.holder = holder
        return part.data

    def keep(self, parts: Iterable[tuple[int, int]], *, writable: bool = False) -> None:
        """Lets go of the file, of which some parts become memory of this process, and the others zeros.

        Views stay where they are. Who reads a part at this moment, on whatever thread, finds the same bytes before and
        after, because the system exchanges the pages at once.

        Args:
            parts: offsets and lengths in bytes.
            writable: whether the memory can be written to from then on.

        Raises:
            LimitExceeded: there is no memory for them; everything is as it was.
        """
        size_bytes, own = self._mapped_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        copy = _mmap(None, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, own, -1, 0)
        if copy != _FAILED and self._address is not None:
            for offset, length in parts:
                ctypes.memmove(copy + offset, self._address + offset, length)
            if not writable:
                _mprotect(copy, size_bytes, mmap.PROT_READ)
            if _mremap(copy, size_bytes, size_bytes, _MOVE_TO, self._address) != _FAILED:
                return
        error = ctypes.get_errno()
        if copy != _FAILED:
            _munmap(copy, size_bytes)
        raise LimitExceeded("memory", size_bytes, 0, f"none to be had for what is kept: {os.strerror(error)}")

    def holds(self, address: int) -> bool:
        """Whether an address lies in this mapping."""
        return self._address is not None and 0 <= address - self._address < self._mapped_bytes

    @property
    def address(self) -> int:
        """Of its first byte in this process."""
        return self._address or 0

    def handle(self, *, read_only: bool = False) -> Handle:
        """Another descriptor of the file, to be passed on; whoever gets it for reading only cannot map it to write.

        Raises:
            LimitExceeded: the system has no descriptor for it.
        """
        try:
            if read_only:
                return Handle(os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC))
            return Handle(os.dup(self.descriptor))
        except OSError as error:
            raise LimitExceeded("descriptors", self.descriptor, 0, f"none to be had: {error.strerror}") from error

    def close_descriptor(self) -> None:
        """Nobody is to be given the file any more; the mapping stays."""
        descriptor, self.descriptor = self.descriptor, -1
        _close(descriptor)

    def __del__(self) -> None:
        try:
            self.close_descriptor()
        finally:
            # Ctrl-C may come in between.
            if self._address is not None:
                _munmap(self._address, self._mapped_bytes)

    def __repr__(self) -> str:
        return f"<SharedMemory {self.size_bytes} bytes identity={self.identity} fd={self.descriptor}>"


def _mapped(descriptor: int, size_bytes: int, protection: int) -> int:
    """Maps the beginning of a file, where large pages fit if that is as long as one; returns the address.

    Raises:
        OSError: it cannot be mapped.
    """
    if size_bytes < LARGE_PAGE_BYTES:
        return _map_unlocked(None, size_bytes, protection, mmap.MAP_SHARED, descriptor)
    # Addresses for as much again as the beginning may be off; what is not needed of them is given back.
    room_bytes = _whole(size_bytes, SHARED_PAGE_BYTES) + LARGE_PAGE_BYTES
    room = _map_at(None, room_bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE, -1)
    address = _whole(room, LARGE_PAGE_BYTES)
    behind = address + room_bytes - LARGE_PAGE_BYTES
    try:
        _map_unlocked(address, size_bytes, protection, mmap.MAP_SHARED | _FIXED, descriptor)
    finally:
        # And nothing between: where the file could not be mapped, that may be somebody else's by now.
        for start, end in ((room, address), (behind, room + room_bytes)):
            if end > start:
                _munmap(start, end - start)
    return address


def _map_unlocked(address: int | None, size_bytes: int, protection: int, flags: int, descriptor: int) -> int:
    """As _map_at, of which the system makes no pages before they are used, also where the program has it lock all that
    it maps (mlockall)."""
    found = _map_at(address, size_bytes, 0, flags, descriptor)
    _munlock(found, size_bytes)
    if _mprotect(found, size_bytes, protection):
        error = ctypes.get_errno()
        if address is None:
            _munmap(found, size_bytes)
        raise OSError(error, os.strerror(error))
    return found


def _map_at(address: int | None, size_bytes: int, protection: int, flags: int, descriptor: int) -> int:
    found: int = _mmap(address, size_bytes, protection, flags, descriptor, 0)
    if found == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return found


def _whole(size_bytes: int, page_bytes: int) -> int:
    """As much in whole pages."""
    return -(-size_bytes // page_bytes) * page_bytes


def _anonymous_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("tensorbus", flags | _NO_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create("tensorbus", flags)


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        with suppress(OSError):
            os.close(descriptor)
