"""A stream of bytes over ZeroMQ messages: what both ends have in common."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Final

import zmq

from broker.buffers import Buffer
from broker.errors import ConnectionClosed
from broker.limits import IOV_BUFFERS_MAX, PLACED_BYTES_MIN
from broker.transport.base import Connection
from broker.transport.readiness import Readiness
from broker.transport.zeromq.bounds import MESSAGE_BYTES_MAX, MESSAGE_CHARGE_BYTES, WINDOW_BYTES
from broker.transport.zeromq.messages import HEADER, HEADER_BYTES, Kind, Malformed, reason_of, reset

_DATA, _GRANT, _END, _RESET = int(Kind.DATA), int(Kind.GRANT), int(Kind.END), int(Kind.RESET)
_GRANT_STEP_BYTES: Final = WINDOW_BYTES // 2
_PEER_CLOSED: Final = "the peer closed the connection"
_CLOSED_HERE: Final = "it was closed on this side"


class PeerGone(Exception):
    """ZeroMQ has no link to the peer any more."""


class Stream(Connection):
    """One end of a connection. The lock is that of the ZeroMQ socket, which several streams may share."""

    __slots__ = (
        "_arrived", "_blocked", "_end", "_granted", "_inbox", "_lent", "_lock", "_lost", "_may_send", "_readiness",
        "_sent", "_sent_max", "_taken",
    )  # fmt: skip

    def __init__(self, lock: threading.Lock, readiness: Readiness, local_address: str, peer_address: str) -> None:
        super().__init__(local_address, peer_address)
        self._lock = lock
        self._readiness = readiness
        # Each with what it adds to the position when it has been taken: the last part of a message has all of it.
        self._inbox: deque[tuple[memoryview, int]] = deque()
        self._lent: memoryview | None = None
        self._arrived = self._taken = self._sent = 0
        self._granted = self._sent_max = WINDOW_BYTES
        self._blocked = self._may_send = False
        self._end: ConnectionClosed | None = None
        self._lost: ConnectionClosed | None = None

    @property
    def sends_when_readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._readiness.fileno()

    # What the two ends do differently, under the lock.

    @abstractmethod
    def _put(self, parts: Sequence[Buffer]) -> None:
        """Gives a message to ZeroMQ.

        That may take the note of something that has come, without which nobody would look for it: pump afterwards.

        Raises:
            PeerGone: there is no link any more.
        """

    @abstractmethod
    def _pump(self) -> None:
        """Takes in what ZeroMQ has; at the end ZeroMQ's descriptor will tell of whatever comes later."""

    @abstractmethod
    def _let_go(self, *, linger: bool) -> None:
        """Gives the link up; what was put is still delivered if it lingers."""

    # Bytes in.

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        with self._lock:
            if self._closed:
                raise ConnectionClosed(_CLOSED_HERE)
            if not self._inbox:
                self._pump()
            received_bytes = self._fill(buffers)
            if received_bytes:
                if self._taken + WINDOW_BYTES - self._granted >= _GRANT_STEP_BYTES and self._end is None:
                    self._grant()
            elif self._end is not None and not self._inbox and any(buffer.nbytes for buffer in buffers):
                raise ConnectionClosed(self._end.reason)
            self._tell()
            return received_bytes

    def lend(self, size_bytes: int) -> memoryview | None:
        with self._lock:
            first = self._inbox[0][0] if self._inbox and self.lends else None
            self._lent = first if first is not None and len(first) == size_bytes and whole_part(first) else None
            return self._lent

    def _fill(self, buffers: Sequence[memoryview]) -> int:
        """Copies from the inbox into the buffers in turn."""
        rooms = [buffer.cast("B") for buffer in buffers[:IOV_BUFFERS_MAX] if buffer.nbytes]
        inbox, received_bytes = self._inbox, 0
        lent, self._lent = self._lent, None
        for room in rooms:
            at, size = 0, len(room)
            while at < size and inbox:
                data, charge = inbox[0]
                if self.lends and len(data) >= PLACED_BYTES_MIN and (at or received_bytes) and whole_part(data):
                    # Whoever sees what is in front of it may ask for it.
                    return received_bytes + at
                count = min(size - at, len(data))
                if lent is None or data is not lent or room.obj is not lent.obj or count != size:
                    room[at : at + count] = data[:count]
                at += count
                if count == len(data):
                    inbox.popleft()
                    self._taken += charge
                else:
                    inbox[0] = (data[count:], charge)
            received_bytes += at
        return received_bytes

    def _grant(self) -> None:
        self._granted = self._taken + WINDOW_BYTES
        try:
            self._put((HEADER.pack(_GRANT, self._granted),))
        except PeerGone:
            self._peer_gone()
        self._pump()

    def arrived(self, kind: int, position: int, parts: Sequence[memoryview]) -> None:
        """A message has come, other than OPEN. Under the lock.

        Raises:
            Malformed: it is not what may come now; the stream is to be broken off.
        """
        if self._end is not None:
            return
        if kind == _DATA:
            self._data_arrived(position, parts)
        elif kind == _GRANT:
            # Whoever grants without bound still finds no more than a window waiting for it.
            self._sent_max = max(self._sent_max, min(position, self._sent + WINDOW_BYTES))
            self._may_send = self._blocked and self._sent < self._sent_max
        elif kind == _END:
            self._check_position(position)
            self._end = ConnectionClosed(_PEER_CLOSED)
        elif kind == _RESET:
            self._break(f"the peer reset the connection: {reason_of(parts[0]) or 'it did not say why'}")
        else:
            raise Malformed("a connection is opened once")
        self._tell()

    def _data_arrived(self, position: int, parts: Sequence[memoryview]) -> None:
        self._check_position(position)
        if position >= self._granted:
            raise Malformed(f"bytes at position {position}, where {self._granted} was granted")
        total_bytes = sum(len(part) for part in parts) - HEADER_BYTES
        if total_bytes > MESSAGE_BYTES_MAX:
            raise Malformed(f"a message of {total_bytes} bytes, the limit is {MESSAGE_BYTES_MAX}")
        charge = total_bytes + MESSAGE_CHARGE_BYTES
        self._arrived += charge
        first = parts[0][HEADER_BYTES:]
        filled = [part for part in (first, *parts[1:]) if part]
        for part in filled[:-1]:
            self._inbox.append((part, 0))
        if filled:
            self._inbox.append((filled[-1], charge))
        else:
            self._taken += charge

    def _check_position(self, position: int) -> None:
        if position != self._arrived:
            raise Malformed(f"position {position} where {self._arrived} was due: something is missing or repeated")

    def _peer_gone(self) -> None:
        """The link is gone: nothing more comes, and nothing can be sent."""
        if self._lost is None:
            self._break(_PEER_CLOSED)
        self._tell()

    def break_off(self, reason: str) -> None:
        """The peer does not keep to the protocol: tells it, and is over. Under the lock."""
        try:
            self._put((reset(reason),))
        except PeerGone:
            # Then it needs not be told.
            self._end = self._end or ConnectionClosed(_PEER_CLOSED)
        self._break(f"the peer is at fault: {reason}")
        self._tell()

    def _break(self, reason: str) -> None:
        self._lost = ConnectionClosed(reason)
        self._end = self._end or self._lost

    def _tell(self) -> None:
        """Makes the descriptor say whether something is to be done."""
        self._readiness.set(bool(self._inbox) or self._may_send or self._end is not None)

    # Bytes out.

    def send(self, buffers: Sequence[Buffer]) -> int:
        with self._lock:
            if self._closed:
                raise ConnectionClosed(_CLOSED_HERE)
            rest = _flat(buffers)
            if not rest:
                return 0
            self._blocked = self._may_send = False
            if self._sent >= self._sent_max:
                self._pump()
            if self._lost is not None:
                raise ConnectionClosed(self._lost.reason)
            sent_bytes = 0
            try:
                while rest and self._sent < self._sent_max:
                    parts, size = _next_message(rest, HEADER.pack(_DATA, self._sent))
                    self._put(parts)
                    self._sent += size + MESSAGE_CHARGE_BYTES
                    sent_bytes += size
            except PeerGone:
                self._peer_gone()
                if not sent_bytes and self._lost is not None:
                    raise ConnectionClosed(self._lost.reason) from None
                return sent_bytes
            self._blocked = bool(rest)
            self._pump()
            self._tell()
            return sent_bytes

    # Life.

    def close(self) -> None:
        self._finish((HEADER.pack(_END, self._sent),), linger=True)

    def abort(self) -> None:
        self._finish((reset("the peer broke it off"),), linger=False)

    def end_sending(self) -> None:
        with self._lock:
            if self._lost is None and not self._closed:
                try:
                    self._put((HEADER.pack(_END, self._sent),))
                except PeerGone:
                    self._peer_gone()
                self._sent_max = 0
                self._pump()

    def _finish(self, parts: Sequence[Buffer], *, linger: bool) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._inbox.clear()
            if self._lost is None:
                try:
                    self._put(parts)
                except PeerGone:
                    # Nobody is there to be told.
                    linger = False
            self._let_go(linger=linger)
            self._readiness.close()


def _flat(buffers: Sequence[Buffer]) -> list[Buffer]:
    """The buffers that hold something, as bytes, the next one last.

    Raises:
        BufferError: one is not contiguous.
    """
    flat: list[Buffer] = []
    for buffer in reversed(buffers[:IOV_BUFFERS_MAX]):
        if type(buffer) is bytes:
            if buffer:
                flat.append(buffer)
            continue
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise BufferError("a buffer that is not contiguous cannot be sent")
        if view.nbytes:
            flat.append(view.cast("B"))
    return flat


def _next_message(rest: list[Buffer], header: bytes) -> tuple[list[Buffer], int]:
    """Takes one message's worth from the end of `rest`; returns its parts, and how many bytes of the stream it has.

    Short buffers are joined, which is cheaper than to have ZeroMQ write another part; long ones are parts of their own.
    """
    parts: list[Buffer] = []
    short: list[Buffer] = [header]
    room = MESSAGE_BYTES_MAX
    while rest and room:
        buffer = rest.pop()
        if len(buffer) > room:
            view = memoryview(buffer)
            rest.append(view[room:])
            buffer = view[:room]
        room -= len(buffer)
        if len(buffer) < PLACED_BYTES_MIN:
            short.append(buffer)
            continue
        if short:
            parts.append(b"".join(short))
            short = []
        parts.append(buffer)
    if short:
        parts.append(b"".join(short))
    return parts, MESSAGE_BYTES_MAX - room


def whole_part(data: Buffer) -> zmq.Frame | None:
    """The part of a message whose bytes these are, all of them; None when they are something else."""
    part: object = data.obj if type(data) is memoryview else None
    return part if type(part) is zmq.Frame and len(part) == len(data) else None


def put_parts(socket: zmq.Socket[bytes], parts: Sequence[Buffer], *, passes_on: bool = False) -> None:
    """Gives all parts of a message to a socket, which copies them.

    Args:
        socket: takes them without waiting.
        parts: of the message.
        passes_on: parts that have come as they are, whole, are not copied: nobody writes to them any more.

    Raises:
        zmq.ZMQError: of the first part only.
    """
    last = len(parts) - 1
    for index, part in enumerate(parts):
        came = whole_part(part) if passes_on else None
        socket.send(part if came is None else came, zmq.NOBLOCK if index == last else zmq.NOBLOCK | zmq.SNDMORE)
