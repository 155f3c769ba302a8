"""Batches: many small messages of one topic in one frame (docs/wire.md section 6).

A batch is an ordinary PUBLISH or DELIVER with the flag BATCH, `count` messages, and this payload:

      0         1       2            4               8              16
      +---------+-------+------------+---------------+---------------+------ - -
      | content | flags | body  u16  | payload   u32  | time_ns  u64 | body, payload, next entry ...
      +---------+-------+------------+---------------+---------------+------ - -

The broker passes it on without opening it and gives its messages the sequences first, first + 1, ...
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from broker.errors import ProtocolError
from broker.limits import BATCH_BYTES, BATCH_MESSAGES_MAX, BATCHED_BYTES_MAX

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

ENTRY: Final = struct.Struct("<BBHIQ")
ENTRY_BYTES: Final = ENTRY.size
ENTRY_BODY_BYTES_MAX: Final = 0xFFFF
_FIRST_BYTES: Final = 4096
"""What a batch has room for at first."""
_SPARES_MAX: Final = 4
_spares: list[bytearray] = []
"""Memory of batches that have left, for the next ones, whosesoever: to grow into it costs as much as to fill it."""


Entry = tuple[int, int, bytes, bytes]
"""One message of a batch: content, time_ns, body, payload."""


def split_batch(payload: bytes, count: int) -> list[Entry]:
    """The messages of a batch.

    Raises:
        ProtocolError: the lengths inside do not add up to the payload, or the count is another one.
    """
    entries: list[Entry] = []
    unpack, append, offset, end = ENTRY.unpack_from, entries.append, 0, len(payload)
    while offset + ENTRY_BYTES <= end:
        content, _, body_bytes, size, time_ns = unpack(payload, offset)
        body_start = offset + ENTRY_BYTES
        payload_start = body_start + body_bytes
        offset = payload_start + size
        append(
            (content, time_ns, payload[body_start:payload_start] if body_bytes else b"", payload[payload_start:offset])
        )
    if offset != end or len(entries) != count:
        raise ProtocolError(f"batch of {count} messages in {end} bytes is truncated or lies about its lengths")
    return entries


def join_batch(entries: Iterable[Entry]) -> bytes:
    """The payload of a batch of these messages; the reverse of split_batch."""
    batch = Batch(0)
    for entry in entries:
        batch.add(*entry)
    return batch.close()


class Batch:
    """A batch that is being filled, on the publisher's side.

    Attributes:
        due_ns: when it is to leave.
        count: messages in it.
        size_bytes: of its payload.
        last_ns: when the last message was added.
    """

    __slots__ = (
        "_data", "_parts", "_wall_offset_ns", "count", "count_max", "due_ns", "last_ns", "size_bytes", "size_max",
    )  # fmt: skip

    def __init__(self, due_ns: int, *, wall_offset_ns: int = 0, size_max: int = BATCH_BYTES) -> None:
        """Args:
        due_ns: when it is to leave, by the monotonic clock.
        wall_offset_ns: wall-clock time minus monotonic time.
        size_max: it is full when it has so many bytes.
        """
        self.due_ns = due_ns
        self.count = 0
        self.count_max = BATCH_MESSAGES_MAX
        self.size_bytes = 0
        self.size_max = size_max
        self.last_ns = 0
        self._wall_offset_ns = wall_offset_ns
        self._data = _spares.pop() if _spares else bytearray()
        self._parts: list[bytes] = []

    def add(self, content: int, time_ns: int, body: bytes, payload: bytes) -> None:
        """Appends one message."""
        head, body_bytes, size = ENTRY_BYTES, len(body), len(payload)
        start, self.size_bytes = self.size_bytes, self.size_bytes + head + body_bytes + size
        self.count += 1
        if not cython.compiled:
            self._parts += (ENTRY.pack(content, 0, body_bytes, size, time_ns), body, payload)
            return
        if self.size_bytes > len(self._data):
            self._data.extend(bytes(max(self.size_bytes, 2 * len(self._data), _FIRST_BYTES) - len(self._data)))
        # As ENTRY says, on machines that are little-endian.
        to = cython.cast(cython.p_uchar, self._data) + start
        to[0], to[1] = content, 0
        cython.cast(cython.p_ushort, to)[1] = body_bytes
        cython.cast(cython.p_uint, to)[1] = size
        cython.cast(cython.p_ulonglong, to)[1] = time_ns
        memcpy(to + head, cython.cast(cython.p_char, body), body_bytes)  # type: ignore[name-defined]  # noqa: F821
        memcpy(to + head + body_bytes, cython.cast(cython.p_char, payload), size)  # type: ignore[name-defined]  # noqa: F821

    def add_more(self, content: int, payload: bytes, now_ns: int) -> bool:
        """Appends a message without a body if the batch need not leave after it; says whether it has."""
        size = len(payload)
        if size > BATCHED_BYTES_MAX or now_ns >= self.due_ns or self.count + 1 >= self.count_max:
            return False
        if self.size_bytes + ENTRY_BYTES + size >= self.size_max:
            return False
        self.last_ns = now_ns
        self.add(content, now_ns + self._wall_offset_ns, b"", payload)
        return True

    @property
    def is_full(self) -> bool:
        """Whether it is to leave, whatever the time."""
        return self.size_bytes >= self.size_max or self.count >= self.count_max

    def close(self) -> bytes:
        """The payload of the batch's frame; nothing can be added any more."""
        self.count_max = 0
        if not cython.compiled:
            return b"".join(self._parts)
        payload: bytes = cython.cast(cython.p_char, self._data)[: self.size_bytes]
        if len(_spares) < _SPARES_MAX:
            _spares.append(self._data)
        self._data = bytearray()
        return payload
