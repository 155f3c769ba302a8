"""Frames: what travels once a session is open (docs/wire.md section 2).

A frame is a fixed header, then a MessagePack body, then a payload that nobody on the way looks into:

      0      1       2      3       4                8                12
      +------+-------+------+---------+----------------+----------------+
      | kind | flags | lane | content | number     u32 | target     u32 |
      +------+-------+------+---------+----------------+----------------+
      12               16               20               24             28
      +----------------+----------------+----------------+--------------+
      | stream     u32 | count      u32 | body_bytes u32 | payload_b u32|
      +----------------+----------------+----------------+--------------+
      28                       36                      44              52
      +------------------------+-----------------------+---------------+
      | total_bytes        u64 | sequence          u64 | time_ns   u64 |
      +------------------------+-----------------------+---------------+
      | body (body_bytes)  ...                                         |
      | payload (payload_bytes) ...                                    |

All integers are little-endian. A field that a kind does not use is zero. What `number`, `target`, `stream`, `count` and
`sequence` mean depends on the kind; docs/wire.md section 3 has the table.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

import msgspec

from broker.buffers import Buffer
from broker.errors import ProtocolError
from broker.limits import FRAME_BODY_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX

HEADER: Final = struct.Struct("<4B6I3Q")
HEADER_BYTES: Final = HEADER.size


class Kind(IntEnum):
    """What a frame does."""

    TOPIC = 1
    PUBLISH = 2
    DELIVER = 3
    CHUNK = 4
    STREAM_ABORT = 5
    SUBSCRIBE = 6
    UNSUBSCRIBE = 7
    CREDIT = 8
    DONE = 9
    ERROR = 10
    FLUSH = 11
    PING = 12
    PONG = 13
    CLOSE = 14
    DROPPED = 15
    JOIN = 16
    JOINED = 17
    LEAVE = 18
    CONTRIBUTE = 19
    RESULT = 20
    FAILED = 21
    CHANGED = 22
    RESUME = 23
    GAP = 24
    DECLARE = 25
    POLICY = 26
    SETTLE = 27
    CANCEL = 28
    QUERY = 29
    ARENA = 30
    MAPPED = 31
    RELEASE = 32
    BOARD = 33


class Flag:
    """What is special about a frame. Plain numbers: `&` of an IntFlag costs as much as the rest of a frame's way."""

    ACKNOWLEDGE: Final = 1
    """PUBLISH: answer with DONE, carrying the message's sequence."""
    REQUEST: Final = 2
    """PUBLISH: answer with ERROR when nobody responds. CREDIT: for the replies to a request."""
    BATCH: Final = 4
    """PUBLISH, DELIVER: the payload holds `count` messages (section 6)."""
    CHUNKED: Final = 8
    """PUBLISH, DELIVER: the payload follows in CHUNK frames of the same `stream` (section 5)."""
    LAST: Final = 16
    """CHUNK, RESULT: nothing follows. PUBLISH: a responder's last reply to a request."""
    TOPIC_CREDIT: Final = 32
    """CREDIT: `number` is a topic, not a subscription."""
    TRACKED: Final = 64
    """DELIVER: a job, to be settled; `stream` is its delivery's number and `count` how often it was delivered."""
    SHARED: Final = 128
    """PUBLISH, DELIVER: the payload says where in shared memory the message's own lies (section 13)."""


class Lane(IntEnum):
    """Which frames go first: a frame never waits behind one of a higher lane."""

    CONTROL = 0
    DEFAULT = 1
    BULK = 2


class Content(IntEnum):
    """How a payload is to be read; the broker does not care."""

    MESSAGEPACK = 0
    BYTES = 1
    TENSOR = 2
    STRUCTURE = 3


KINDS: Final = frozenset(int(kind) for kind in Kind)
LANES: Final = len(Lane)
EMPTY: Final = b""


class Frame(msgspec.Struct, gc=False):
    """One frame. `payload` is flat bytes; whoever holds the frame holds the payload."""

    kind: int
    flags: int = 0
    lane: int = Lane.DEFAULT
    content: int = 0
    number: int = 0
    target: int = 0
    stream: int = 0
    count: int = 0
    total_bytes: int = 0
    sequence: int = 0
    time_ns: int = 0
    body: bytes = EMPTY
    payload: Buffer = EMPTY

    def __repr__(self) -> str:
        size = payload_bytes(self.payload)
        return (
            f"<{Kind(self.kind).name} number={self.number} target={self.target} sequence={self.sequence} {size} bytes>"
        )


def payload_bytes(payload: Buffer) -> int:
    """The length of a flat payload, in bytes."""
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


def encode(frame: Frame, buffers: list[Buffer]) -> int:
    """Appends a frame to a list for a gathered write; the payload is not copied.

    Returns:
        The frame's length on the wire, in bytes.
    """
    body, payload = frame.body, frame.payload
    size = payload_bytes(payload)
    header = HEADER.pack(
        frame.kind,
        frame.flags,
        frame.lane,
        frame.content,
        frame.number,
        frame.target,
        frame.stream,
        frame.count,
        len(body),
        size,
        frame.total_bytes,
        frame.sequence,
        frame.time_ns,
    )
    buffers.append(header + body if body else header)
    if size:
        buffers.append(payload)
    return HEADER_BYTES + len(body) + size


def check_header(kind: int, lane: int, body_bytes: int, size: int) -> None:
    """Refuses a header before any memory is reserved for it.

    Raises:
        ProtocolError: the kind or lane is unknown, or a length is over its limit.
    """
    if kind not in KINDS:
        raise ProtocolError(f"frame of unknown kind {kind}: kinds are 1 to {max(KINDS)}, with gaps")
    if lane >= LANES:
        raise ProtocolError(f"frame on unknown lane {lane}: lanes are 0 to {LANES - 1}")
    if body_bytes > FRAME_BODY_BYTES_MAX:
        raise ProtocolError(f"frame body of {body_bytes} bytes is over the limit of {FRAME_BODY_BYTES_MAX}")
    if size > FRAME_PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            f"frame payload of {size} bytes is over the limit of {FRAME_PAYLOAD_BYTES_MAX}: "
            "longer messages come in chunks"
        )
