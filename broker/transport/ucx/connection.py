"""The owner's end of a connection: bytes to and from memory that its carrier reads and writes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final

from broker.buffers import Buffer
from broker.errors import ConnectionClosed
from broker.limits import IOV_BUFFERS_MAX, UCX_RING_BYTES
from broker.transport.base import Connection, flat
from broker.transport.readiness import Readiness
from broker.transport.sockets import in_plain_words
from broker.transport.ucx.carriers import CarriersFailed, carriers
from broker.transport.ucx.link import LINGER_ZERO, MAGIC, STRANGER
from broker.transport.ucx.records import (
    FROM_CARRIER,
    FROM_OWNER,
    REASON_BYTES_MAX,
    STEP_BYTES,
    State,
    Wish,
    map_rings,
)

_CLOSED_HERE: Final = "it was closed on this side"
_PEER_CLOSED: Final = "the peer closed the connection"
_CARRIER_GONE: Final = "the process that speaks UCX for this end has ended; UCX ends it over what a peer should not do"


class UcxConnection(Connection):
    """One end. A lock lets one thread send while another receives: each may read what the carrier says."""

    __slots__ = (
        "_arrived", "_blocked", "_door", "_end", "_free", "_greeted", "_into", "_link", "_lock", "_lost", "_may_send",
        "_out", "_read", "_read_told", "_readiness", "_wishes", "_written",
    )  # fmt: skip

    def __init__(self, link: socket.socket, local_address: str, peer_address: str, *, greets: bool) -> None:
        """Args:
            link: a TCP connection with the peer, which belongs to this one.
            local_address: this end.
            peer_address: the other end.
            greets: whether this end speaks first, and not only to who does.

        Raises:
            OSError: no descriptor is left.
        """
        super().__init__(local_address, peer_address)
        link.setblocking(False)
        self._readiness = Readiness()
        self._readiness.include(link.fileno())
        self._link: socket.socket | None = link
        self._door: socket.socket | None = None
        self._out = self._into = memoryview(b"")
        self._lock = threading.Lock()
        self._blocked = self._may_send = False
        self._written = self._free = self._arrived = self._read = self._read_told = 0
        self._wishes = 0
        self._end: str | None = None
        self._lost: str | None = None
        self._greeted = greets
        if greets:
            # There is room for that, and a peer that is gone shows later.
            with suppress(OSError):
                link.send(MAGIC)

    @property
    def opening(self) -> bool:
        return self._link is not None and self._lost is None

    @property
    def sends_when_readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._readiness.fileno()

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        rooms = [buffer.cast("B") for buffer in buffers[:IOV_BUFFERS_MAX] if buffer.nbytes]
        with self._lock:
            if self._closed:
                raise ConnectionClosed(_CLOSED_HERE)
            self._hear()
            received_bytes = self._take(rooms)
            if self._read - self._read_told >= STEP_BYTES:
                self._tell()
            if self._end is not None and rooms and not received_bytes and self._read == self._arrived:
                raise ConnectionClosed(self._end)
            self._signal()
            return received_bytes

    def _take(self, rooms: Sequence[memoryview]) -> int:
        """Copies what has arrived, as much as there is room for; returns how much."""
        begun = self._read
        for room in rooms:
            at, size = 0, len(room)
            while at < size and self._read < self._arrived:
                begin = self._read % UCX_RING_BYTES
                count = min(size - at, self._arrived - self._read, UCX_RING_BYTES - begin)
                room[at : at + count] = self._into[begin : begin + count]
                at += count
                self._read += count
        return self._read - begun

    def send(self, buffers: Sequence[Buffer]) -> int:
        views = [flat(buffer) for buffer in buffers[:IOV_BUFFERS_MAX]]
        with self._lock:
            if self._closed:
                raise ConnectionClosed(_CLOSED_HERE)
            wanted = sum(map(len, views))
            if self._written + wanted > self._free + UCX_RING_BYTES or self._lost is not None:
                self._hear()
            self._blocked = self._may_send = False
            carried = self._lost is None and wanted > 0 and self._carry()
            if self._lost is not None:
                raise ConnectionClosed(self._lost)
            sent_bytes = self._put(views) if carried and not self._wishes else 0
            if sent_bytes:
                self._written += sent_bytes
                if not self._tell():
                    # The carrier is stopped: what it was not told of was not sent.
                    self._written -= sent_bytes
                    sent_bytes = 0
                if self._lost is not None:
                    raise ConnectionClosed(self._lost)
            self._blocked = sent_bytes < wanted
            # With the queue for carriers full, one has to ask again.
            self._may_send = self._blocked and not carried
            self._signal()
            return sent_bytes

    def _put(self, flat: Sequence[memoryview]) -> int:
        """Copies as much as there is room for behind what was written; returns how much."""
        position, limit = self._written, self._free + UCX_RING_BYTES
        for data in flat:
            at, size = 0, len(data)
            while at < size and position < limit:
                begin = position % UCX_RING_BYTES
                count = min(size - at, limit - position, UCX_RING_BYTES - begin)
                self._out[begin : begin + count] = data[at : at + count]
                at += count
                position += count
        return position - self._written

    # The carrier.

    def _carry(self) -> bool:
        """Gives the link to a carrier, if that was not done yet; says whether there is one."""
        if self._link is None:
            return self._door is not None
        try:
            if not self._greeted:
                self._greeted = bool(self._link.send(MAGIC))
            with ExitStack() as opened:
                memory = os.memfd_create("tensorbus-ucx")
                opened.callback(os.close, memory)
                os.ftruncate(memory, 2 * UCX_RING_BYTES)
                out, into = map_rings(memory)
                door, theirs = (opened.enter_context(end) for end in socket.socketpair(type=socket.SOCK_SEQPACKET))
                if not carriers.carry(self._link, theirs, memory):
                    return False
                door = door.dup()
        except (CarriersFailed, OSError) as error:
            self._lose(f"UCX cannot be used: {error}")
            return False
        self._readiness.exclude(self._link.fileno())
        self._link.close()
        door.setblocking(False)
        self._readiness.include(door.fileno())
        self._link, self._door, self._out, self._into = None, door, out, into
        return True

    def _hear(self) -> None:
        """Takes in what the carrier says; before there is one, has it made when the peer has begun to speak."""
        while self._lost is None:
            if self._link is not None and not (self._begun(self._link) and self._carry()):
                return
            assert self._door is not None
            try:
                record = self._door.recv(FROM_CARRIER.size + REASON_BYTES_MAX)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It ended without having read everything, which is told once, and before its last words.
                continue
            if not record:
                self._lose(_CARRIER_GONE)
                return
            self._arrived, free, state = FROM_CARRIER.unpack_from(record)
            if free > self._free:
                self._free = free
                self._may_send = self._blocked
            if state == State.LOST:
                self._lose(record[FROM_CARRIER.size :].decode(errors="replace"))
            elif state == State.ENDED and self._end is None:
                self._end = record[FROM_CARRIER.size :].decode(errors="replace")

    def _begun(self, link: socket.socket) -> bool:
        """Whether the peer has begun to speak as it should: no process is made for others."""
        try:
            said = link.recv(len(MAGIC), socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lose(in_plain_words(error))
            return False
        if not said:
            self._lose(_PEER_CLOSED)
        elif not MAGIC.startswith(said):
            self._lose(STRANGER.format(said))
        return said == MAGIC

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self._end = self._end or reason

    def _tell(self) -> bool:
        """Tells the carrier how far this end is; says whether that could be told."""
        assert self._door is not None
        try:
            self._door.send(FROM_OWNER.pack(self._written, self._read, self._wishes))
        except BlockingIOError:
            return False
        except ConnectionError:
            # It may have said why.
            self._hear()
            return False
        self._read_told = self._read
        return True

    def _signal(self) -> None:
        """Makes the descriptor say whether something is to be done."""
        self._readiness.set(self._read < self._arrived or self._may_send or self._end is not None)

    # Life.

    def close(self) -> None:
        """What was written stays with the carrier, which sees this end's end and delivers it."""
        with self._lock:
            self._release()

    def end_sending(self) -> None:
        with self._lock:
            if not self._closed and self._lost is None and self._carry():
                self._wishes |= Wish.END
                self._tell()

    def abort(self) -> None:
        with self._lock:
            if self._link is not None:
                self._link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            elif self._door is not None:
                self._wishes |= Wish.ABORT
                self._tell()
            self._release()

    def disown(self) -> None:
        self._release()

    def _release(self) -> None:
        self._closed = True
        self._readiness.close()
        for sock in (self._link, self._door):
            if sock is not None:
                sock.close()
        self._link = self._door = None
        self._out = self._into = memoryview(b"")
