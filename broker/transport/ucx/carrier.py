"""A carrier: the process that takes one end of a connection's bytes from its owner to the peer's carrier and back.

It sends pieces of the owner's ring as messages of UCX, straight out of that memory, and receives the peer's straight
into the other ring, at the same position. So a message is copied by UCX alone, by rendezvous if it is large. Of what it
sends, no more is under way than the peer has granted, which is what its ring has room for. Grants, and the end, pass
over the link, a TCP connection: when that ends, so has the peer.

UCX is set up when the first byte is to be sent, or the peer says that it will send some. A stranger costs a process
that waits, no more.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from ipaddress import ip_address
from typing import Final, NoReturn

from broker.limits import UCX_LINGER_S, UCX_PIECE_BYTES, UCX_RING_BYTES
from broker.transport.ucx.library import Channel, ChannelFailed, Request, check
from broker.transport.ucx.link import LINGER_ZERO, NOTE, Kind, Malformed, Notes, hello
from broker.transport.ucx.records import (
    FROM_CARRIER,
    FROM_OWNER,
    REASON_BYTES_MAX,
    STEP_BYTES,
    State,
    Wish,
    map_rings,
)

_READ_BYTES: Final = 65_536
_PEER_CLOSED: Final = "the peer closed the connection"
_PEER_GONE: Final = "the peer ended without closing the connection"
_PEER_RESET: Final = "the peer reset the connection"
_LAST_LOOKS: Final = 100
"""How often UCX is asked for what a peer that is gone had sent before."""
_LAST_WORD_S: Final = 5.0


class Over(Exception):
    """The carrier has nothing more to do."""


class Carrier:
    """One end's. See the module; positions are those of records.py."""

    def __init__(self, link: socket.socket, door: socket.socket, memory: int) -> None:
        """Args:
        link: connected with the peer's carrier; it belongs to this one.
        door: connected with the owner.
        memory: the descriptor of the rings.
        """
        for sock in (link, door):
            sock.setblocking(False)
        self._link, self._door = link, door
        self._out, self._into = map_rings(memory)
        self._notes = Notes()
        self._unsent = bytearray()
        self._channel: Channel | None = None
        self._watched: dict[int, int] = {}
        self._poll = select.poll()
        # Out: the owner has written, UCX was given, has left, the peer has read, the owner was told that it has.
        self._written = self._given = self._left = self._peer_read = self._free_told = 0
        self._leaving: deque[tuple[Request, int]] = deque()
        # In: UCX was given room for, has arrived, the owner was told of, it has read, the peer was told of.
        self._awaited = self._arrived = self._arrived_told = self._read = self._read_told = 0
        self._arriving: deque[tuple[Request, int]] = deque()
        self._state, self._state_told, self._reason = State.OPEN, State.OPEN, ""
        self._ends = self._end_sent = self._owner_gone = self._peer_done = False
        self._peer_end: int | None = None
        self._left_before = 0
        self._linger_until_s: float | None = None

    def run(self) -> None:
        """Carries until both ends have ended."""
        try:
            while True:
                # While UCX has something, the others can wait: it comes to rest when a window is used up.
                if self._channel is None or self._channel.arm():
                    self._wait()
                self._turn()
        except Over:
            # The last word: it may wait for an owner that is busy.
            self._door.settimeout(_LAST_WORD_S)
            self._tell()

    def _turn(self) -> None:
        if self._channel is None and self._given < self._written:
            self._set_up()
        if self._channel is not None:
            self._move(self._channel)
        self._end()
        self._tell()
        self._write_link()

    # The owner.

    def _hear_owner(self) -> None:
        while not self._owner_gone:
            try:
                record = self._door.recv(FROM_OWNER.size)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It ended without having read everything, which is told once, and before its last records.
                continue
            if not record:
                self._owner_gone = self._ends = True
                return
            self._written, self._read, wishes = FROM_OWNER.unpack(record)
            if wishes & Wish.ABORT:
                self._reset()
            self._ends = self._ends or bool(wishes & Wish.END)

    def _tell(self) -> None:
        """Tells the owner what it has to know by now; where its socket takes nothing more, the next turn does."""
        # What the peer has read may be written over, once UCX has let go of it.
        free = min(self._left, self._peer_read)
        news = self._arrived > self._arrived_told or self._state is not self._state_told
        if self._owner_gone or not (news or free - self._free_told >= STEP_BYTES):
            return
        reason = self._reason.encode()[:REASON_BYTES_MAX]
        try:
            self._door.send(FROM_CARRIER.pack(self._arrived, free, self._state) + reason)
        except (BlockingIOError, TimeoutError, ConnectionError):
            # An owner that is gone may have left something to be heard.
            return
        self._arrived_told, self._free_told, self._state_told = self._arrived, free, self._state

    # The link.

    def _hear_peer(self) -> None:
        while True:
            try:
                data = self._link.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self._lost(_PEER_RESET)
            if not data:
                self._peer_gone()
            try:
                for kind, number, address in self._notes.split(data):
                    self._heard(kind, number, address)
            except Malformed as error:
                self._fault(str(error))

    def _heard(self, kind: Kind, number: int, address: bytes) -> None:
        if kind is Kind.HELLO:
            if self._channel is None:
                self._set_up()
            assert self._channel is not None
            if self._channel.opened:
                raise Malformed("it says twice where it is found")
            self._open(self._channel, address, number)
        elif kind is Kind.GRANT:
            if not self._peer_read <= number <= self._given:
                raise Malformed(f"it has read {number} bytes of {self._given}, after {self._peer_read}")
            self._peer_read = number
        elif kind is Kind.END:
            if self._peer_end is not None or not self._awaited <= number <= self._read_told + UCX_RING_BYTES:
                raise Malformed(f"it ends at {number}, when {self._awaited} are there")
            self._peer_end = number
        else:
            self._peer_done = True

    def _note(self, kind: Kind, number: int) -> None:
        self._unsent += NOTE.pack(kind, number)

    def _write_link(self) -> None:
        if not self._unsent:
            return
        try:
            del self._unsent[: self._link.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._lost(_PEER_RESET)

    def _peer_gone(self) -> NoReturn:
        """The link has ended: takes what had come before, and is over."""
        channel = self._channel
        if channel is not None and self._peer_end != self._arrived:
            for _ in range(_LAST_LOOKS):
                self._move(channel)
        self._lost(_PEER_CLOSED if self._peer_end == self._arrived else _PEER_GONE)

    # UCX.

    def _set_up(self) -> None:
        # What the interpreter has allocated while it started is never garbage; the address of the link says how far.
        loopback = ip_address(self._link.getsockname()[0].partition("%")[0]).is_loopback
        try:
            channel = self._channel = Channel(loopback=loopback)
        except ChannelFailed as error:
            self._fault(str(error))
        self._unsent += hello(channel.tag, channel.address)

    def _open(self, channel: Channel, address: bytes, tag: int) -> None:
        try:
            channel.open(address, tag)
        except ChannelFailed as error:
            self._fault(str(error))

    def _move(self, channel: Channel) -> None:
        """Moves on what UCX can."""
        channel.progress()
        try:
            self._receive(channel)
            if channel.opened:
                self._send(channel)
            while self._leaving and self._leaving[0][0].completed:
                request, self._left = self._leaving.popleft()
                check(request)
            while self._arriving and self._arriving[0][0].completed:
                request, self._arrived = self._arriving.popleft()
                check(request)
        except (ChannelFailed, Malformed) as error:
            self._fault(str(error))
        if self._read - self._read_told >= STEP_BYTES:
            self._read_told = self._read
            self._note(Kind.GRANT, self._read)

    def _receive(self, channel: Channel) -> None:
        while (probed := channel.probe()) is not None:
            found, length = probed
            begin = self._awaited % UCX_RING_BYTES
            room = min(UCX_RING_BYTES - begin, self._read_told + UCX_RING_BYTES - self._awaited)
            if not 0 < length <= room:
                raise Malformed(f"it sends a message of {length} bytes, where {room} are free")
            self._awaited += length
            self._arriving.append((channel.receive(found, self._into[begin : begin + length]), self._awaited))

    def _send(self, channel: Channel) -> None:
        most = min(self._written, self._peer_read + UCX_RING_BYTES)
        while self._given < most:
            begin = self._given % UCX_RING_BYTES
            size = min(most - self._given, UCX_RING_BYTES - begin, UCX_PIECE_BYTES)
            self._given += size
            self._leaving.append((channel.send(self._out[begin : begin + size]), self._given))

    # The end.

    def _end(self) -> None:
        if self._peer_end == self._arrived and self._state is State.OPEN:
            self._state, self._reason = State.ENDED, _PEER_CLOSED
            self._note(Kind.DONE, self._arrived)
        if self._ends and not self._end_sent and self._left == self._written:
            self._end_sent = True
            self._note(Kind.END, self._left)
        if self._owner_gone and self._peer_done and not self._unsent:
            raise Over

    def _lost(self, reason: str) -> NoReturn:
        self._state, self._reason = State.LOST, reason
        raise Over

    def _fault(self, reason: str) -> NoReturn:
        """Goes no further with this peer."""
        self._link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self._lost(reason)

    def _reset(self) -> NoReturn:
        self._link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        raise Over

    # Waiting.

    def _wait(self) -> None:
        """Waits until there is something to do, and hears who says what."""
        owed = not self._owner_gone and (self._arrived > self._arrived_told or self._state is not self._state_told)
        self._watch(self._link.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0))
        self._watch(self._door.fileno(), 0 if self._owner_gone else select.POLLIN | (select.POLLOUT if owed else 0))
        if self._channel is not None:
            self._watch(self._channel.fileno(), select.POLLIN)
        ready = [descriptor for descriptor, _ in self._poll.poll(self._patience_ms())]
        if self._door.fileno() in ready:
            self._hear_owner()
        if self._link.fileno() in ready:
            self._hear_peer()

    def _patience_ms(self) -> float | None:
        """How long to wait: with nobody left who would give the peer up, not for one that takes nothing."""
        if not self._owner_gone:
            return None
        now_s = time.monotonic()
        if self._linger_until_s is None or self._left > self._left_before:
            self._left_before, self._linger_until_s = self._left, now_s + UCX_LINGER_S
        if now_s >= self._linger_until_s:
            self._reset()
        return (self._linger_until_s - now_s) * 1000

    def _watch(self, descriptor: int, events: int) -> None:
        if self._watched.get(descriptor, 0) == events:
            return
        self._watched[descriptor] = events
        if events:
            self._poll.register(descriptor, events)
        else:
            self._poll.unregister(descriptor)
