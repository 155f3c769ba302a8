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

from broker.buffers import Buffer
from broker.errors import ProtocolError
from broker.limits import FRAME_BODY_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, MESSAGE_BYTES_MAX

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

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
    LINKS = 34
    COMMITTED = 35
    GIVE_UP = 37
    TOOK_PART = 38
    REGROUP = 39
    LINE = 40
    DRAIN = 41
    ATTACH = 42
    BELL = 43
    OPERATIONS = 44
    MEASURED = 45
    FINISHED = 52


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
    TRACED: Final = 32
    """PUBLISH: its headers have the context of a trace that is recorded (section 18)."""
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


KIND_MAX: Final = max(int(kind) for kind in Kind)
_NAMED: Final = frozenset(int(kind) for kind in Kind)
_HEADER_BYTES = HEADER_BYTES
LANES: Final = len(Lane)
EMPTY: Final = b""
_DEFAULT: Final = int(Lane.DEFAULT)


FIELDS: Final = (
    "kind", "flags", "lane", "content", "number", "target", "stream", "count", "total_bytes", "sequence", "time_ns",
    "body", "payload",
)  # fmt: skip


# A frame lives as long as its way through a few calls, and refers to nothing that could refer to it.
@cython.no_gc
@cython.freelist(8)
@cython.cclass
class Frame:
    """One frame. `payload` is flat bytes; whoever holds the frame holds the payload."""

    __slots__ = FIELDS

    def __init__(
        self,
        kind: int,
        flags: int = 0,
        lane: int = _DEFAULT,
        content: int = 0,
        number: int = 0,
        target: int = 0,
        stream: int = 0,
        count: int = 0,
        total_bytes: int = 0,
        sequence: int = 0,
        time_ns: int = 0,
        body: bytes = EMPTY,
        payload: Buffer = EMPTY,
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.lane = lane
        self.content = content
        self.number = number
        self.target = target
        self.stream = stream
        self.count = count
        self.total_bytes = total_bytes
        self.sequence = sequence
        self.time_ns = time_ns
        self.body = body
        self.payload = payload

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        size = payload_bytes(self.payload)
        return (
            f"<{kind_name(self.kind)} number={self.number} target={self.target} sequence={self.sequence} {size} bytes>"
        )


def kind_name(kind: int) -> str:
    """A kind in words, also one that has no name here."""
    return Kind(kind).name if kind in _NAMED else f"kind {kind}"


def payload_bytes(payload: Buffer) -> int:
    """The length of a flat payload, in bytes."""
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


def pack_header(
    kind: int,
    flags: int,
    lane: int,
    content: int,
    number: int,
    target: int,
    stream: int,
    count: int,
    body_bytes: int,
    size: int,
    total_bytes: int,
    sequence: int,
    time_ns: int,
) -> bytes:
    """The header of a frame whose body and payload have so many bytes."""
    if not cython.compiled:
        return HEADER.pack(
            kind, flags, lane, content, number, target, stream, count, body_bytes, size, total_bytes, sequence, time_ns
        )
    return _packed(  # type: ignore[name-defined, no-any-return]  # noqa: F821
        kind, flags, lane, content, number, target, stream, count, body_bytes, size, total_bytes, sequence, time_ns
    )


def encode(frame: Frame, buffers: list[Buffer]) -> int:
    """Appends a frame to a list for a gathered write; the payload is not copied.

    Returns:
        The frame's length on the wire, in bytes.
    """
    body, payload = frame.body, frame.payload
    body_bytes, size = len(body), payload_bytes(payload)
    head = pack_header(
        frame.kind, frame.flags, frame.lane, frame.content, frame.number, frame.target, frame.stream, frame.count,
        body_bytes, size, frame.total_bytes, frame.sequence, frame.time_ns,
    )  # fmt: skip
    buffers.append(head + body if body_bytes else head)
    if size:
        buffers.append(payload)
    return _HEADER_BYTES + body_bytes + size


def check_header(kind: int, lane: int, body_bytes: int, size: int, total_bytes: int) -> None:
    """Refuses a header before any memory is reserved for it.

    Raises:
        ProtocolError: the kind or lane is unknown, or a length is over its limit.
    """
    if not 0 < kind <= KIND_MAX:
        raise ProtocolError(f"frame of unknown kind {kind}: kinds are 1 to {KIND_MAX}")
    if lane >= LANES:
        raise ProtocolError(f"frame on unknown lane {lane}: lanes are 0 to {LANES - 1}")
    if body_bytes > FRAME_BODY_BYTES_MAX:
        raise ProtocolError(f"frame body of {body_bytes} bytes is over the limit of {FRAME_BODY_BYTES_MAX}")
    if size > FRAME_PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            f"frame payload of {size} bytes is over the limit of {FRAME_PAYLOAD_BYTES_MAX}: "
            "longer messages come in chunks"
        )
    if total_bytes > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"frame of a message of {total_bytes} bytes: the limit is {MESSAGE_BYTES_MAX}")
