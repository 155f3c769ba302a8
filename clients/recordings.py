"""Recordings: messages in a file, as they came, to be looked at, compared and published again (docs/recording.md).

    0                16
    +----------------+--------+--------+--------+-- - -      the file's head, and records to its end
    | head           | record | record | record |
    +----------------+--------+--------+--------+-- - -

    0          4          8      9         12
    +----------+----------+------+---------+------ - - -+
    | size u32 | crc  u32 | kind | 0  0  0 | body       |    one record; size is the body's, at most 1 MiB and a head
    +----------+----------+------+---------+------ - - -+

    START    JSON: of what it is a recording
    MESSAGE  length of the head u32, the head in JSON, and the payload, of a long one the first MiB
    PART     the next MiB of the payload, until it is complete
    END      JSON: how much was recorded; without it the recording ended in the middle

The file is only ever appended to. Each record has its checksum, so a torn end, after a crash or a full disk, is seen,
and what is before it can be read. All of it can be read with Python's standard library, and nothing in it is code.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import zlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Final, Self, TypeVar

import msgspec

from broker.buffers import Buffer
from broker.errors import InvalidValue, ProtocolError
from broker.protocol.tensors import TensorMeta
from broker.protocol.values import decode_value
from broker.topics.names import check_topic
from clients.reading.messages import Message

T = TypeVar("T")

MAGIC: Final = b"TBUSREC\n"
VERSION: Final = 1
PART_BYTES: Final = 1 << 20
HEAD_BYTES_MAX: Final = 256 * 1024
"""More than topic, sender and headers can be."""
RECORD_BYTES_MAX: Final = PART_BYTES + HEAD_BYTES_MAX + 4
DIGEST_BYTES: Final = 16
_FILE_HEAD: Final = struct.Struct("<8sH6x")
_RECORD: Final = struct.Struct("<IIB3x")
_LENGTH: Final = struct.Struct("<I")


class Kind(IntEnum):
    """What a record is."""

    START = 1
    MESSAGE = 2
    PART = 3
    END = 4


class Start(msgspec.Struct, omit_defaults=True):
    """Of what a recording is.

    Attributes:
        filters: of the topics.
        began_ns: the wall clock, in nanoseconds since 1970.
        url: of the broker, as it was asked for; empty for the default.
    """

    filters: list[str]
    began_ns: int
    url: str = ""


class End(msgspec.Struct, omit_defaults=True):
    """What a recording has, from its START on.

    Attributes:
        messages: that were recorded.
        payload_bytes: of all of them.
        lost: messages that its subscription has lost, as those of a slow reader that drops.
    """

    messages: int
    payload_bytes: int
    lost: int = 0


class Head(msgspec.Struct, omit_defaults=True):
    """A message without its payload.

    Attributes:
        topic: where.
        sender: the publisher's name.
        sequence: in the topic.
        published_ns: the publisher's wall clock, in nanoseconds since 1970.
        received_ns: the recorder's.
        lane: `control`, `default` or `bulk`.
        content: what the payload is (docs/wire.md section 8): 0 a value, 1 bytes, 2 a tensor, 3 a value with tensors.
        size: of the payload, in bytes.
        digest: of content, description and payload: BLAKE2b of 16 bytes, in hexadecimal.
        headers: as they were published.
        tensor: of a tensor, its description.
        gap: messages of the topic that were lost right before this one.
    """

    topic: str
    sender: str
    sequence: int
    published_ns: int
    received_ns: int
    lane: str
    content: int
    size: int
    digest: str
    headers: dict[str, str] = {}
    tensor: TensorMeta | None = None
    gap: int = 0


class Recorded(msgspec.Struct):
    """A message of a recording."""

    head: Head
    payload: bytearray

    @property
    def value(self) -> object:
        """What was published; see `Message.value`.

        Raises:
            ProtocolError: it cannot be read.
        """
        return decode_value(self.head.content, self.head.tensor, self.payload)


def digest_of(content: int, tensor: TensorMeta | None, payload: Buffer) -> str:
    """A checksum that two messages share if they hold the same: BLAKE2b of 16 bytes, in hexadecimal."""
    described = "" if tensor is None else f"{tensor.dtype} {list(tensor.shape)} {tensor.order} {tensor.byte_order}"
    digest = hashlib.blake2b(f"{content} {described}\n".encode(), digest_size=DIGEST_BYTES)
    digest.update(payload)
    return digest.hexdigest()


class Writer:
    """A recording that is being made. One thread at a time may call.

    Attributes:
        messages: that were added.
        payload_bytes: of these.
        size_bytes: of the file.
    """

    def __init__(self, path: Path, start: Start, *, append: bool = False) -> None:
        """Begins a file, or goes on with one, from which a torn end is cut off.

        Raises:
            InvalidValue: the file is there already, or is no recording to be gone on with, or cannot be written.
        """
        self.messages = 0
        self.payload_bytes = 0
        self._broken = False
        try:
            # It lives as long as the writer.
            self._file: BinaryIO = open(path, "r+b" if append else "xb", opener=_open_for_owner)  # noqa: SIM115
        except FileExistsError as error:
            raise InvalidValue("recording", str(path), "is there already; --append goes on with it") from error
        except OSError as error:
            raise InvalidValue("recording", str(path), f"cannot be written: {error.strerror}") from error
        try:
            self.size_bytes = _end_of(self._file, path) if append else 0
        except BaseException:
            self._file.close()
            raise
        if not self.size_bytes:
            self.size_bytes = self._file.write(_FILE_HEAD.pack(MAGIC, VERSION))
        self._put(Kind.START, msgspec.json.encode(start))

    def add(self, message: Message, received_ns: int | None = None) -> None:
        """Records a message.

        Args:
            message: as it came.
            received_ns: when, by the wall clock; None is now.

        Raises:
            OSError: the disk is full, for example. What was written of the message is then a torn end.
        """
        payload, body = message.payload, message.body
        head = Head(
            topic=message.topic, sender=message.sender, sequence=message.sequence, published_ns=message.published_ns,
            received_ns=time.time_ns() if received_ns is None else received_ns, lane=message.lane,
            content=message.content, size=len(payload), digest=digest_of(message.content, body.tensor, payload),
            headers=body.headers or {}, tensor=body.tensor, gap=message.gap,
        )  # fmt: skip
        encoded, view = msgspec.json.encode(head), memoryview(payload)
        self._put(Kind.MESSAGE, _LENGTH.pack(len(encoded)), encoded, view[:PART_BYTES])
        for start in range(PART_BYTES, len(view), PART_BYTES):
            self._put(Kind.PART, view[start : start + PART_BYTES])
        self.messages += 1
        self.payload_bytes += len(payload)

    def flush(self) -> None:
        """Gives everything to the system."""
        self._file.flush()

    def close(self, lost: int = 0) -> None:
        """Ends the recording, and waits until it is on the disk; a second call does nothing."""
        if self._file.closed:
            return
        try:
            if not self._broken:
                self._put(Kind.END, msgspec.json.encode(End(self.messages, self.payload_bytes, lost)))
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _put(self, kind: Kind, *parts: Buffer) -> None:
        crc = zlib.crc32(bytes((kind,)))
        for part in parts:
            crc = zlib.crc32(part, crc)
        # Behind something torn nothing could be found any more.
        broken, self._broken = self._broken, True
        if broken:
            raise InvalidValue("recording", self._file.name, "could not be written before; it ends there")
        self.size_bytes += self._file.write(_RECORD.pack(sum(map(len, parts)), crc, kind))
        for part in parts:
            self.size_bytes += self._file.write(part)
        self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Writer messages={self.messages} size_bytes={self.size_bytes}>"


class _Bad(Exception):
    """A recording cannot be read any further: why, and whether it merely ends there."""

    def __init__(self, problem: str, *, torn: bool = False) -> None:
        super().__init__(problem)
        self.torn = torn


class Reader:
    """A recording that is read from its start, message by message; each takes its payload's memory and no more.

    Attributes:
        start: of what it is; of one that was gone on with, the first.
        problem: why there is nothing more to be read before the file's end, in words; empty when there was no reason.
        torn: whether that is because the file ends in the middle of a record or a message.
        ended: whether the last thing that was read is an END.
        good_bytes: of the file, that were read and are as they should be.
        lost: messages that its subscriptions had lost, as far as was read.
        size_bytes: of the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            InvalidValue: it cannot be read, or is no recording, or of another version.
        """
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - it lives as long as the reader
        except OSError as error:
            raise InvalidValue("recording", str(path), f"cannot be read: {error.strerror}") from error
        self.start = Start([], 0)
        self.problem = ""
        self.torn = self.ended = False
        self.good_bytes = _FILE_HEAD.size
        self.lost = 0
        try:
            self.size_bytes = os.fstat(self._file.fileno()).st_size
            _check_head(self._file, path)
            self._begin()
        except BaseException:
            self._file.close()
            raise

    def _begin(self) -> None:
        """Reads of what it is a recording, which is its first record."""
        try:
            record = self._next()
            if record is not None and record[0] == Kind.START:
                self.start = _decoded(record[1], Start)
                self.good_bytes = self._file.tell()
            elif record is not None:
                raise _Bad("what comes first is no START")
        except _Bad as error:
            self._stop(error)

    def __iter__(self) -> Iterator[Recorded]:
        """The messages that are whole, in the order in which they came."""
        while not self.problem:
            try:
                record = self._next()
                if record is None:
                    return
                message = self._take(*record)
            except _Bad as error:
                self._stop(error)
                return
            self.good_bytes = self._file.tell()
            if message is not None:
                yield message

    def _take(self, kind: int, body: bytes) -> Recorded | None:
        self.ended = kind == Kind.END
        if kind == Kind.MESSAGE:
            return self._message(body)
        if kind == Kind.END:
            self.lost += _decoded(body, End).lost
        elif kind != Kind.START:
            raise _Bad("a part of no message")
        return None

    def _message(self, body: bytes) -> Recorded:
        """A message with all its parts."""
        if len(body) < _LENGTH.size:
            raise _Bad("a message without a head")
        start = _LENGTH.size + _LENGTH.unpack_from(body)[0]
        head, payload = _decoded(body[_LENGTH.size : start], Head), bytearray(memoryview(body)[start:])
        try:
            # Of a broker they all are; a file may be from anybody, and what it says is shown and published.
            check_topic(head.topic, reserved=True)
        except InvalidValue as error:
            raise _Bad(f"a message of a topic that cannot be: {error}") from error
        while len(payload) < head.size:
            part = self._next()
            if part is None or part[0] != Kind.PART or not part[1]:
                raise _Bad("a message without its end", torn=part is None)
            payload += part[1]
        if len(payload) != head.size:
            raise _Bad(f"a message of {head.size} bytes that has {len(payload)}")
        return Recorded(head, payload)

    def _next(self) -> tuple[int, bytes] | None:
        """The next record; None at the end."""
        head = self._file.read(_RECORD.size)
        if not head:
            return None
        if len(head) < _RECORD.size:
            raise _Bad("a record without its end", torn=True)
        size, crc, kind = _RECORD.unpack(head)
        if size > RECORD_BYTES_MAX:
            raise _Bad(f"a record of {size} bytes, where {RECORD_BYTES_MAX} are the most")
        body = self._file.read(size)
        if len(body) < size:
            raise _Bad("a record without its end", torn=True)
        if zlib.crc32(body, zlib.crc32(bytes((kind,)))) != crc:
            raise _Bad("a record whose checksum is another one")
        return kind, body

    def _stop(self, error: _Bad) -> None:
        self.ended, self.torn = False, error.torn
        self.problem = f"at byte {self.good_bytes} of {self.size_bytes}: {error}"

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Reader {self.good_bytes} of {self.size_bytes} bytes {self.problem!r}>"


def _open_for_owner(path: str, flags: int) -> int:
    """Others must not read what they may not subscribe to, whatever the umask is."""
    return os.open(path, flags, 0o600)


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Bad(f"a record that cannot be read: {error}") from error


def _check_head(file: BinaryIO, path: Path) -> None:
    head = file.read(_FILE_HEAD.size)
    magic, version = _FILE_HEAD.unpack(head) if len(head) == _FILE_HEAD.size else (b"", 0)
    if magic != MAGIC:
        raise InvalidValue("recording", str(path), "is none: it does not begin like one")
    if version != VERSION:
        raise InvalidValue("recording", str(path), f"is of version {version}, and this program reads {VERSION}")


def _end_of(file: BinaryIO, path: Path) -> int:
    """Cuts off what is torn at a recording's end; returns its length from there on."""
    with Reader(path) as reader:
        for _ in reader:
            pass
    if reader.problem and not reader.torn:
        raise InvalidValue("recording", str(path), f"is damaged, and not only torn at its end: {reader.problem}")
    file.truncate(reader.good_bytes)
    file.seek(reader.good_bytes)
    return reader.good_bytes


def check_readable(recorded: Recorded) -> object:
    """The value of a recorded message.

    Raises:
        ProtocolError: its payload is not what its head says.
    """
    head = recorded.head
    if digest_of(head.content, head.tensor, recorded.payload) != head.digest:
        raise ProtocolError(
            f"message {head.sequence} of {head.topic!r} in the recording has another digest than it says"
        )
    return recorded.value
