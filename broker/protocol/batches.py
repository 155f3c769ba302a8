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
from typing import Final

from broker.errors import ProtocolError
from broker.limits import BATCH_MESSAGES_MAX

ENTRY: Final = struct.Struct("<BBHIQ")
ENTRY_BYTES: Final = ENTRY.size
ENTRY_BODY_BYTES_MAX: Final = 0xFFFF


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


class Batch:
    """A batch that is being filled, on the publisher's side."""

    __slots__ = ("count", "count_max", "due_ns", "parts", "size_bytes")

    def __init__(self, due_ns: int) -> None:
        """Args:
        due_ns: when it is to leave.
        """
        self.due_ns = due_ns
        self.parts: list[bytes] = []
        self.count = 0
        self.count_max = BATCH_MESSAGES_MAX
        self.size_bytes = 0

    def add(self, content: int, time_ns: int, body: bytes, payload: bytes) -> None:
        """Appends one message."""
        body_bytes, size = len(body), len(payload)
        append = self.parts.append
        append(ENTRY.pack(content, 0, body_bytes, size, time_ns))
        if body_bytes:
            append(body)
        append(payload)
        self.count += 1
        self.size_bytes += ENTRY_BYTES + body_bytes + size

    def payload(self) -> bytes:
        """The payload of the batch's frame."""
        return b"".join(self.parts)
