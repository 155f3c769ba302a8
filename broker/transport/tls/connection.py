"""A connection with TLS between the socket and the buffers.

OpenSSL does not touch the socket: what arrives is given to it, and what it has encrypted is taken from it
and sent, so that a system call moves many records, and a wait is always for the socket and never within OpenSSL.

    receive_into   socket --recv--> arrived --> incoming --SSL_read--> the caller's buffers
    send           the caller's buffers --SSL_write--> outgoing --> rest --send--> socket

OpenSSL is given what has arrived two records at a time, and no more in a call once that has brought little: what
is no data it deals with at once, and a read may be full of changes of keys, which take long.

Nothing is encrypted while the socket has no room, so `rest`, what is encrypted and not with the kernel, is nearly
always empty. The descriptor is an epoll, because three things have to be told by it: bytes have arrived; there is room
again for a `send` that took less than it got, or for `rest`; bytes are decrypted that found no room in the caller's
buffers.

The handshake goes on in whatever call comes, and blocks none. What is sent before it is over waits in `early`.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from broker.buffers import Buffer
from broker.errors import ConnectionClosed
from broker.limits import (
    IOV_BUFFERS_MAX,
    TLS_ANSWERS_BYTES_MAX,
    TLS_CLOSE_S,
    TLS_EARLY_BYTES_MAX,
    TLS_SILENT_BYTES_MAX,
    TLS_SILENT_BYTES_PER_S,
)
from broker.transport.base import flat
from broker.transport.proofs import Certificate
from broker.transport.sockets import SocketConnection, in_plain_words
from broker.transport.tls.contexts import closed_by
from broker.transport.tls.silence import Silence

RECORD_BYTES: Final = 16_384
"""The most that one record holds (RFC 8446, section 5.1)."""
_TAKEN_BYTES: Final = RECORD_BYTES + 512
"""What is read at least, so that a record of any length becomes whole."""
_TAKEN_BYTES_MAX: Final = 112 * 1024
"""What is read at most: as much as the C library's malloc gives without asking the kernel for new pages."""
_GIVEN_BYTES: Final = 2 * RECORD_BYTES + 512
"""What OpenSSL is given at a time: more than one record, or each of them would meet the end of what was given."""
_HELLO_BYTES: Final = 64 * 1024
"""As long as a hello can be, about."""
_BATCH_BYTES: Final = 4 * RECORD_BYTES
"""What is encrypted before it is sent."""
_CLOSED_HERE: Final = "it was closed on this side"
_PEER_CLOSED: Final = "the peer closed the connection"
_PEER_GONE: Final = "the peer closed the connection without a word: it was killed, or something between has cut it off"
_SAYS_NOTHING: Final = (
    "the peer has sent {:.0f} bytes of TLS that say nothing, as changes of keys, "
    "of which {} at once and {} a second are the most"
)
_ANSWERS_UNREAD: Final = "the peer does not read what TLS answers it: {} bytes wait, of which {} are the most"
_ALERT: Final = b"\x15\x03\x01\x00\x02\x02\x46"
"""Fatal, protocol_version (RFC 8446, section 6)."""
_NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)


class _Readiness:
    """A descriptor that is readable when the socket is, and also when something else is to be done."""

    __slots__ = ("_blocked", "_epoll", "_left", "_socket")

    _always = -1
    """An event of the whole process that is never taken."""

    def __init__(self, sock: socket.socket) -> None:
        """Raises:
        OSError: no descriptor is left.
        """
        if _Readiness._always < 0:
            _Readiness._always = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._socket = sock
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)
        self._left = self._blocked = False

    def fileno(self) -> int:
        return -1 if self._epoll.closed else self._epoll.fileno()

    def left(self, left: bool) -> None:
        """Whether bytes are decrypted that nobody has taken."""
        if left != self._left:
            self._left = left
            if left:
                self._epoll.register(_Readiness._always, select.EPOLLIN)
            else:
                self._epoll.unregister(_Readiness._always)

    def blocked(self, blocked: bool) -> None:
        """Whether something is to be done when the socket has room."""
        if blocked != self._blocked:
            self._blocked = blocked
            self._epoll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if blocked else 0))

    def close(self) -> None:
        self._epoll.close()


class TlsConnection(SocketConnection):
    """A connection over TLS, which owns its socket."""

    __slots__ = (
        "_arrived", "_cut", "_dialled", "_early", "_end", "_heard_bytes", "_incoming", "_left", "_lock", "_lost",
        "_opening", "_outgoing", "_over", "_readiness", "_rest", "_room", "_silence", "_ssl", "_wanting",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        host: str | None,
        local_address: str,
        peer_address: str,
        opened: Callable[[TlsConnection], None] = lambda connection: None,
    ) -> None:
        """Args:
        sock: connected; the connection's from now on.
        context: see contexts.py.
        host: for whom the peer's certificate must be; None where the peer has dialled.
        local_address: see Connection.
        peer_address: see Connection.
        opened: called when the handshake is over, whatever came of it.

        Raises:
            OSError: no descriptor is left.
            ValueError: the host cannot be one.
        """
        super().__init__(sock, local_address, peer_address)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._dialled = host is not None
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing, server_side=not self._dialled, server_hostname=host
        )
        self._arrived = memoryview(b"")
        """What OpenSSL has yet to be given."""
        self._readiness = _Readiness(sock)
        # OpenSSL's state is one for both directions, and two threads may send and receive at once.
        self._lock = threading.Lock()
        self._over = opened
        self._opening = True
        self._early = bytearray()
        self._rest = b""
        self._room = select.poll()
        self._room.register(sock, select.POLLOUT)
        self._left = self._wanting = False
        self._heard_bytes = 0
        """Of what the peer has to say."""
        self._silence = Silence()
        self._cut: ConnectionClosed | None = None
        """Why nothing more arrives; what has may still be to be decrypted."""
        self._end: ConnectionClosed | None = None
        """Why nothing more comes, once that is so."""
        self._lost: ConnectionClosed | None = None
        """Why nothing more can be sent."""
        if self._dialled:
            self._shake_hands()

    @property
    def sends_when_readable(self) -> bool:
        return True

    @property
    def private(self) -> bool:
        return True

    @property
    def local_host(self) -> str:
        try:
            return str(self._socket.getsockname()[0])
        except OSError:
            return ""

    @property
    def opening(self) -> bool:
        return self._opening

    @property
    def peer_certificate(self) -> Certificate | None:
        parsed = None if self._opening else self._ssl.getpeercert()
        return Certificate.of(parsed) if parsed else None

    def fileno(self) -> int:
        return self._readiness.fileno()

    # The handshake.

    def _shake_hands(self) -> None:
        """Goes on with the handshake as far as what has arrived allows."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            if self._cut is not None and not self._incoming.pending:
                self._fail(self._cut)
            return
        except ssl.SSLError as error:
            if not self._dialled and not self._outgoing.pending:
                # OpenSSL does not answer what is not TLS at all; who reads this knows what is spoken here.
                self._rest = _ALERT
            self._fail(closed_by(error, dialled=self._dialled, opening=True))
            return
        self._opening = False
        self._silence = Silence()
        self._over(self)
        early, self._early = self._early, bytearray()
        for record in _records([memoryview(early)]):
            self._ssl.write(record)
        self._flush()

    def _fail(self, cause: ConnectionClosed) -> None:
        self._end = self._end or cause
        self._lost = self._lost or cause
        # The peer is told why, as far as it can be.
        self._flush()
        if self._opening:
            self._over(self)

    def give_up(self, reason: str) -> None:
        """Ends a handshake that is under way; whoever owns the connection sees it in the next call."""
        with self._lock:
            if self._opening and not self._closed:
                self._end = self._lost = ConnectionClosed(reason)
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    # Bytes in.

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        rooms = [room for room in map(flat, buffers[:IOV_BUFFERS_MAX]) if room]
        with self._lock:
            if self._closed:
                raise ConnectionClosed(_CLOSED_HERE)
            received_bytes = self._received_into(rooms) if self._end is None else 0
            if not received_bytes and rooms and self._end is not None:
                raise ConnectionClosed(self._end.reason, self._end.code)
            return received_bytes

    def _received_into(self, rooms: list[memoryview]) -> int:
        if self._rest:
            self._flush()
        if not self._left:
            self._receive(sum(len(room) for room in rooms))
        given_bytes = self._give()
        if self._opening:
            self._shake_hands()
            if self._opening or self._end is not None:
                return 0
        received_bytes = self._decrypt(rooms, given_bytes)
        self._heard_bytes += received_bytes
        if self._outgoing.pending:
            # OpenSSL has something of its own to say, as when keys are changed.
            self._flush()
        if self._silence.is_over(time.monotonic(), self._incoming.pending + self._ssl.pending()):
            limits = (TLS_SILENT_BYTES_MAX, TLS_SILENT_BYTES_PER_S)
            self._fail(ConnectionClosed(_SAYS_NOTHING.format(self._silence.bytes, *limits)))
        elif self._outgoing.pending > TLS_ANSWERS_BYTES_MAX:
            self._fail(ConnectionClosed(_ANSWERS_UNREAD.format(self._outgoing.pending, TLS_ANSWERS_BYTES_MAX)))
        if not self._left:
            self._end = self._end or self._cut
        return received_bytes

    def _receive(self, room_bytes: int) -> None:
        """Takes what has arrived from the kernel, not much more than there is room for."""
        # Who has said less than a hello may be anybody.
        most = _TAKEN_BYTES if self._heard_bytes < _HELLO_BYTES else _TAKEN_BYTES_MAX
        wanted = min(max(room_bytes - self._incoming.pending, _TAKEN_BYTES), most)
        try:
            data = self._socket.recv(wanted)
        except BlockingIOError:
            return
        except OSError as error:
            self._cut = ConnectionClosed(in_plain_words(error))
            self._lost = self._lost or self._cut
            return
        if data:
            self._arrived = memoryview(data)
        else:
            self._cut = ConnectionClosed(_PEER_GONE)

    def _give(self) -> int:
        """Gives OpenSSL the next part of what has arrived; returns how many bytes."""
        given = self._arrived[: 0 if self._incoming.pending else _GIVEN_BYTES]
        if given:
            self._incoming.write(given)
            self._arrived = self._arrived[_GIVEN_BYTES:]
            self._silence.came(len(given))
        return len(given)

    def _decrypt(self, rooms: list[memoryview], given_bytes: int) -> int:
        """Fills the buffers in turn, and takes note of what is left."""
        received_bytes, due_bytes, waits = 0, given_bytes // 2, True
        for room in rooms:
            while waits and room:
                count = self._read_record(room)
                received_bytes += count
                room = room[count:]
                if not count or not (self._ssl.pending() or self._incoming.pending):
                    waits = len(self._arrived) > 0 and received_bytes >= due_bytes and self._end is None
                    due_bytes = received_bytes + (self._give() if waits else 0) // 2
        self._left = self._has_more and self._end is None
        self._readiness.left(self._left)
        return received_bytes

    @property
    def _has_more(self) -> bool:
        return self._ssl.pending() > 0 or self._incoming.pending > 0 or len(self._arrived) > 0

    def _read_record(self, room: memoryview) -> int:
        """Decrypts into a buffer; returns 0 when no record is whole, or none comes any more."""
        try:
            count = self._ssl.read(len(room), room)
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLZeroReturnError:
            self._end = self._end or ConnectionClosed(_PEER_CLOSED)
            return 0
        except ssl.SSLError as error:
            self._fail(closed_by(error, dialled=self._dialled, opening=False))
            return 0
        if not count:
            self._end = self._end or ConnectionClosed(_PEER_CLOSED)
        self._silence.said(int(count), 1)
        return int(count)

    # Bytes out.

    def send(self, buffers: Sequence[Buffer]) -> int:
        views = [view for view in map(flat, buffers[:IOV_BUFFERS_MAX]) if view]
        with self._lock:
            if self._closed:
                raise ConnectionClosed(_CLOSED_HERE)
            if self._lost is not None:
                raise ConnectionClosed(self._lost.reason, self._lost.code)
            if not views:
                return 0
            sent_bytes = self._keep(views) if self._opening else self._encrypt(views)
            if not sent_bytes and self._lost is not None:
                raise ConnectionClosed(self._lost.reason, self._lost.code)
            self._wanting = sent_bytes < sum(len(view) for view in views)
            self._look_for_room()
            return sent_bytes

    def _keep(self, views: list[memoryview]) -> int:
        """Takes what is sent before it can be."""
        kept_bytes = len(self._early)
        for view in views:
            self._early += view[: TLS_EARLY_BYTES_MAX - len(self._early)]
        return len(self._early) - kept_bytes

    def _encrypt(self, views: list[memoryview]) -> int:
        sent_bytes = 0
        for record in _records(views):
            if not self._outgoing.pending and not self._has_room():
                break
            try:
                sent_bytes += self._ssl.write(record)
            except ssl.SSLError as error:
                self._fail(closed_by(error, dialled=self._dialled, opening=False))
                return sent_bytes
            if self._outgoing.pending >= _BATCH_BYTES and not self._flush():
                break
        self._flush()
        return sent_bytes

    def _has_room(self) -> bool:
        """Whether the kernel takes as much as is encrypted at once, as a rule."""
        if self._rest and not self._flush():
            return False
        return bool(self._room.poll(0))

    def _flush(self) -> bool:
        """Gives the kernel what is encrypted; returns whether nothing of it is left."""
        while self._rest or self._outgoing.pending:
            self._rest = self._rest or self._outgoing.read()
            try:
                self._rest = self._rest[self._socket.send(self._rest, _NO_SIGNAL) :]
            except BlockingIOError:
                break
            except OSError as error:
                # What the peer has said before may still be read, and may say why.
                self._rest = b""
                self._lost = self._lost or ConnectionClosed(in_plain_words(error))
        self._look_for_room()
        return not self._rest

    def _look_for_room(self) -> None:
        self._readiness.blocked(bool(self._rest) or (self._wanting and not self._opening))

    # Life.

    def _say_farewell(self) -> None:
        """Lets the peer know that this is the end, and not that somebody has cut the connection off."""
        if self._opening or self._lost is not None or self._ssl.pending():
            return
        # OpenSSL would look among what has arrived for the peer's own farewell, and take all else for a mistake.
        arrived = self._incoming.read()
        with suppress(ssl.SSLError):
            self._ssl.unwrap()
        if arrived:
            self._incoming.write(arrived)
        self._flush()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._say_farewell()
            while not self._flush() and self._room.poll(TLS_CLOSE_S * 1000):
                continue
            self._let_go()
            super().close()

    def end_sending(self) -> None:
        with self._lock:
            self._say_farewell()
            self._lost = self._lost or ConnectionClosed("sending was ended on this side")
            super().end_sending()

    def disown(self) -> None:
        # In a forked child nobody gives back a lock that another thread had.
        self._readiness.close()
        super().disown()

    def abort(self) -> None:
        with self._lock:
            if not self._closed:
                self._let_go()
                super().abort()

    def _let_go(self) -> None:
        if self._opening:
            self._over(self)
        self._early.clear()
        self._readiness.close()


def _records(views: Sequence[memoryview]) -> Iterator[Buffer]:
    """What each record is to hold: short neighbours together, long ones in slices, without a copy."""
    joined = bytearray()
    for view in views:
        at = 0
        if joined or len(view) < RECORD_BYTES:
            at = min(len(view), RECORD_BYTES - len(joined))
            joined += view[:at]
            if len(joined) == RECORD_BYTES:
                yield joined
                joined = bytearray()
        while len(view) - at >= RECORD_BYTES:
            yield view[at : at + RECORD_BYTES]
            at += RECORD_BYTES
        joined += view[at:]
    if joined:
        yield joined
