"""Buffers that are used again, so that large receives cost no page faults in the steady state.

A fresh buffer of megabytes is fresh pages: the kernel zeroes each one on first touch, which costs more than the copy
itself. The pool keeps the buffers that it gave out and hands one out again when nobody else refers to it any more. Who
still uses a buffer is not tracked by calls, which can be forgotten, but read off its reference count: every array and
memoryview over a buffer holds a reference to it.

Of several free buffers the one that was in use last is handed out: what streams through stays in the processor's cache.
A buffer that was not needed for a minute goes back to the system: what one burst took is not kept for ever.

A buffer starts at a multiple of 64 bytes, and so do then the tensors in it: what the libraries that read them ask for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from broker.limits import MEMORY_LOOK_BYTES

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

ByteArray = npt.NDArray[np.uint8]

_GRAIN_BYTES: Final = 4096
_ALIGNMENT_BYTES: Final = 64
_LATEST_MAX: Final = 8
"""Buffers of a size that are looked at first, of those that were given out last: some are still in the cache."""
_OTHERS_MAX: Final = 2
"""And of the others, in turn. A look that finds nothing adds a buffer, so with one at a time the end would never be
reached."""
UNUSED_NS: Final = 30_000_000_000
"""How often the pool lets go of what nobody has asked for since the last time."""


class _Kept:
    """A buffer that the pool remembers.

    Attributes:
        start: the place in it at which what is given out starts.
        asked_for: whether it was given out since the pool last let go of what is unused.
    """

    __slots__ = ("asked_for", "buffer", "start")

    def __init__(self, buffer: ByteArray, start: int) -> None:
        self.buffer = buffer
        self.start = start
        self.asked_for = True


class _Shelf:
    """Buffers of one size.

    Attributes:
        kept: all of them, in the order in which they were given out.
    """

    __slots__ = ("_next", "kept")

    def __init__(self) -> None:
        self.kept: list[_Kept] = []
        self._next = 0

    def take_free(self) -> _Kept | None:
        """A buffer that nobody uses, of those that are looked at; it is the last one now."""
        size = len(self.kept)
        for position in range(size - 1, max(0, size - _LATEST_MAX) - 1, -1):
            if _references(self.kept, position) == _REFERENCES_WHEN_FREE:
                return self._take(position)
        if size <= _LATEST_MAX:
            return None
        # Where many are under way, the one that was given out first is let go of first, if nobody keeps it for long:
        # so others get their turn too.
        if _references(self.kept, 0) == _REFERENCES_WHEN_FREE:
            return self._take(0)
        for _ in range(_OTHERS_MAX):
            position = self._next % size
            if _references(self.kept, position) == _REFERENCES_WHEN_FREE:
                return self._take(position)
            self._next = position + 1
        return None

    def _take(self, position: int) -> _Kept:
        taken = self.kept.pop(position)
        self.kept.append(taken)
        taken.asked_for = True
        return taken


def _references(kept: list[_Kept], position: int) -> int:
    each = kept[position]
    if cython.compiled:
        return Py_REFCNT(each.buffer)  # type: ignore[name-defined, no-any-return]  # noqa: F821
    return sys.getrefcount(each.buffer)


_REFERENCES_WHEN_FREE: Final = _references([_Kept(np.empty(1, np.uint8), 0)], 0)
"""The shelf's, and those of the call itself, which versions of Python count differently."""


def _nothing() -> None:
    """Nobody wants to look."""


class BufferPool:
    """Byte buffers by size. One thread at a time may call."""

    def __init__(self, bytes_max: int) -> None:
        """Args:
        bytes_max: memory that the pool remembers; what is over it is given out and forgotten.
        """
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self.look: Callable[[], None] = _nothing
        """Called after each MEMORY_LOOK_BYTES that were given out."""
        self._unlooked_bytes = 0
        self._shelves: dict[int, _Shelf] = {}
        self._let_go_ns = 0

    def acquire(self, size_bytes: int) -> ByteArray:
        """A buffer of at least `size_bytes`, cut to that length; its content is arbitrary.

        It is the caller's as long as the caller refers to it, to a view or to a memoryview of it.
        """
        self.count(size_bytes)
        rounded = -(-size_bytes // _GRAIN_BYTES) * _GRAIN_BYTES
        shelf = self._shelves.get(rounded)
        if shelf is None:
            shelf = self._shelves[rounded] = _Shelf()
        kept = shelf.take_free()
        if kept is None:
            buffer = np.empty(rounded + _ALIGNMENT_BYTES, np.uint8)
            kept = _Kept(buffer, -buffer.ctypes.data % _ALIGNMENT_BYTES)
            if self.held_bytes + rounded <= self.bytes_max or self._trim(rounded):
                shelf.kept.append(kept)
                self.held_bytes += rounded
        return kept.buffer[kept.start : kept.start + size_bytes]

    def count(self, size_bytes: int) -> None:
        """Memory was given out, by the pool or by somebody else."""
        self._unlooked_bytes += size_bytes
        if self._unlooked_bytes >= MEMORY_LOOK_BYTES:
            self._unlooked_bytes = 0
            self.look()

    def counted(self, lend: Callable[[int], memoryview | None]) -> Callable[[int], memoryview | None]:
        """Somebody who lends memory that is not the pool's, and what they lend counted."""

        def counting(size_bytes: int) -> memoryview | None:
            lent = lend(size_bytes)
            if lent is not None:
                self.count(size_bytes)
            return lent

        return counting

    def tick(self, now_ns: int) -> None:
        """Time passes: what is free and was not asked for of late is let go of."""
        if now_ns - self._let_go_ns < UNUSED_NS:
            return
        self._let_go_ns = now_ns
        for size, shelf in list(self._shelves.items()):
            self._keep_used(size, shelf, recently=True)
            for kept in shelf.kept:
                kept.asked_for = False
            if not shelf.kept:
                del self._shelves[size]

    def let_go(self) -> None:
        """Forgets all buffers that nobody uses."""
        for size, shelf in self._shelves.items():
            self._keep_used(size, shelf, recently=False)

    def _keep_used(self, size: int, shelf: _Shelf, *, recently: bool) -> None:
        """Forgets those of one size that are free; those that were asked for recently may count as used."""
        used = [
            kept
            for position, kept in enumerate(shelf.kept)
            if (recently and kept.asked_for) or _references(shelf.kept, position) > _REFERENCES_WHEN_FREE
        ]
        self.held_bytes -= size * (len(shelf.kept) - len(used))
        shelf.kept = used

    def _trim(self, wanted_bytes: int) -> bool:
        """Forgets free buffers of other sizes until `wanted_bytes` fit; says whether they do."""
        if wanted_bytes > self.bytes_max:
            return False
        for size, shelf in self._shelves.items():
            for position in reversed(range(len(shelf.kept))):
                if self.held_bytes + wanted_bytes <= self.bytes_max:
                    return True
                if _references(shelf.kept, position) == _REFERENCES_WHEN_FREE:
                    del shelf.kept[position]
                    self.held_bytes -= size
        return self.held_bytes + wanted_bytes <= self.bytes_max

    def __repr__(self) -> str:
        return f"<BufferPool {self.held_bytes} of {self.bytes_max} bytes>"
