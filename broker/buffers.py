"""The types of everything that is sent: flat bytes in memory, in one place or in several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

Buffer = bytes | bytearray | memoryview
"""Flat bytes (format `B`, one dimension, contiguous). Python 3.12 has a wider `collections.abc.Buffer`."""

JOINED_BYTES_MAX: Final = 4096
"""Shorter pieces that follow each other are joined when they are sent: copying them costs less than an entry of a
gathered write."""
_JOINED = JOINED_BYTES_MAX


class Gathered:
    """A payload that lies in several places, and is sent from there.

    Attributes:
        parts: its flat buffers, in order.
        size_bytes: of all of them.
    """

    __slots__ = ("parts", "size_bytes")

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self.parts = parts
        self.size_bytes = sum(map(len, parts))

    def __len__(self) -> int:
        return self.size_bytes

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __repr__(self) -> str:
        return f"<Gathered {len(self.parts)} parts {self.size_bytes} bytes>"


Payload = Buffer | Gathered


class Pieces:
    """A way through a payload from its first byte to its last, which copies short pieces only."""

    __slots__ = ("_offset", "_part", "_parts")

    def __init__(self, payload: Payload) -> None:
        self._parts = iter(payload.parts if isinstance(payload, Gathered) else (payload,))
        self._part = memoryview(b"")
        self._offset = 0

    def take(self, size_bytes: int, buffers: list[Buffer]) -> None:
        """Appends the next `size_bytes`, of which there have to be as many, to a list for a gathered write."""
        short: list[Buffer] = []
        while size_bytes:
            size = min(len(self._part) - self._offset, size_bytes)
            if not size:
                self._part, self._offset = memoryview(next(self._parts)), 0
                continue
            piece = self._part[self._offset : self._offset + size]
            self._offset += size
            size_bytes -= size
            if size < _JOINED:
                short.append(piece)
                continue
            if short:
                buffers.append(b"".join(short))
                short.clear()
            buffers.append(piece)
        if short:
            buffers.append(b"".join(short))
