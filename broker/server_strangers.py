"""Connections over which nothing whole has been said yet: thousands of them, beside which sessions go on as ever.

Anybody can connect to a port and say nothing, or a byte a second. Until there is a whole hello, or a whole record of
TLS, such a connection is a socket and a few words about it, and no Connection, Session and SessionRecord:

    accept --> waits --whole hello--> Connection, Session: `let_in`
                 |---rubbish, too late, too many--> is told so, closed
                 `---closed by its peer----------> closed

What has come is looked at where it lies, in the kernel (MSG_PEEK), so that the session reads it as if nothing had been.
An epoll of their own tells once of each byte, and a few of them at a time, and in between everybody else has a turn.

Of several workers, the one to which somebody has come need not be the one that is meant: with the whole hello, that of
TLS where it is spoken, they are passed on (server_seat.py), also where they came over a Unix-domain socket, which is
why they wait there then.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final

from broker.errors import BrokerError, ConnectionClosed, LimitExceeded, ProtocolError
from broker.ids import SessionId
from broker.limits import KIB, STRANGER_BYTES_MAX, WORKER_HELLO_BYTES_MAX
from broker.protocol.bodies import Refusal
from broker.protocol.codes import Code
from broker.protocol.handshake import answer_to, decode_greeting, encode_greeting
from broker.server_scarcity import Scarcity
from broker.server_seat import Seat
from broker.state.arrivals import Arrivals, Stranger
from broker.transport.base import Connection, Listener
from broker.transport.descriptors import peer_credentials
from broker.transport.sockets import SocketListener, drop_received, in_plain_words
from broker.transport.tcp import address_text
from broker.transport.tls.hello import has_whole_hello
from broker.transport.tls.records import has_whole_record

log = logging.getLogger(__name__)

LOOKS_AT_ONCE: Final = 2
"""Strangers that are looked at before the others have their turn; to turn one away takes some 30 us."""
_PEEK: Final = socket.MSG_PEEK | socket.MSG_DONTWAIT
_SEND: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_DROPPED_READS_MAX, _DROPPED_BYTES = 16, 16 * KIB
_PEER_CLOSED: Final = ConnectionClosed("the peer closed the connection")
_FAULT: Final = ConnectionClosed("the broker has a fault here, which is in its log", Code.INTERNAL)
_AWAY: Final = ConnectionClosed("the worker that has these topics is away, or overloaded; try again", Code.LIMIT)
_SHUT_DOWN: Final = ConnectionClosed("the broker is shutting down", Code.SHUTDOWN)


def _has_greeting(start: bytes) -> bool:
    """Whether there is a hello, for which a session is needed.

    Raises:
        ProtocolError: there never will be.
    """
    return decode_greeting(memoryview(start)) is not None


_IS_WHOLE: Final[Mapping[str, Callable[[bytes], bool]]] = {
    "tcp": _has_greeting,
    "tls": has_whole_record,
    "unix": _has_greeting,
}
"""Until when strangers wait, by the scheme."""
_IS_WHOLE_TO_ONE_OF_SEVERAL: Final[Mapping[str, Callable[[bytes], bool]]] = {**_IS_WHOLE, "tls": has_whole_hello}
"""Which has to find out who is meant."""
_NETWORKED: Final = ("tcp", "tls")
"""Where they always do. Elsewhere they are this host's, or a library's."""


class _Waiting:
    """A stranger, and the socket."""

    __slots__ = ("_of", "id", "listener", "opened_ns", "place", "socket")

    def __init__(
        self,
        of: Strangers,
        session_id: SessionId,
        sock: socket.socket,
        place: tuple[str, int] | str,
        listener: SocketListener,
        now_ns: int,
    ) -> None:
        """`place`: what the socket says of the other end, in words where that is no address."""
        self._of = of
        self.id = session_id
        self.socket = sock
        self.place = place
        self.listener = listener
        self.opened_ns = now_ns

    @property
    def peer(self) -> str:
        place = self.place
        return place if isinstance(place, str) else address_text(self.listener.address.scheme, place)

    @property
    def address(self) -> str:
        host = "" if isinstance(self.place, str) else self.place[0]
        return f"[{host}]" if ":" in host else host

    def turn_away(self, why: BrokerError) -> None:
        self._of.turn_away(self, why)


class Strangers:
    """All of them at one server."""

    def __init__(
        self,
        arrivals: Arrivals,
        scarcity: Scarcity,
        let_in: Callable[[SocketListener, Connection, Stranger], None],
        seat: Seat | None = None,
    ) -> None:
        """Args:
        arrivals: bounds how many there are, and how long they may stay.
        scarcity: bounds what they take of what is scarce.
        let_in: called with whom there is to be a session for.
        seat: of one of several workers.
        """
        self._arrivals = arrivals
        self._scarcity = scarcity
        self._let_in = let_in
        self._seat = seat
        self._is_whole = _IS_WHOLE if seat is None else _IS_WHOLE_TO_ONE_OF_SEVERAL
        self._bytes_max = STRANGER_BYTES_MAX if seat is None else WORKER_HELLO_BYTES_MAX
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, _Waiting] = {}
        """By their descriptors."""
        self._delayed: dict[int, _Waiting] = {}
        """Of these, for whom their worker had no room yet; they are looked at again."""
        self._epoll: select.epoll | None = None
        self._expiring = False

    def wait_at(self, listener: Listener) -> bool:
        """Whether those who come to a listener have to wait here."""
        scheme = listener.address.scheme
        return scheme in _NETWORKED or (self._seat is not None and scheme in _IS_WHOLE)

    def start(self, listeners: Sequence[Listener]) -> None:
        """From here on they may come to these. Ends with `close`."""
        if any(map(self.wait_at, listeners)):
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._look)
        if self._seat is not None:
            self._loop.add_reader(self._seat.fileno(), self._take)

    def accept(self, listener: SocketListener) -> bool:
        """Has the next one at a listener wait here; says whether there was one.

        Raises:
            LimitExceeded, ConnectionClosed: as the listener's `accept`.
        """
        taken = listener.take()
        if taken is None:
            return False
        self._arrive(listener, *taken)
        return True

    def _take(self) -> None:
        """Another worker has passed somebody on to this one."""
        assert self._seat is not None
        taken = self._seat.take()
        if taken is None:
            return
        listener, sock = taken
        try:
            self._arrive(listener, sock, sock.getpeername())
        except OSError as error:
            sock.close()
            log.info("worker.connection_gone address=%s cause=%s", listener.address, in_plain_words(error))
        except ConnectionClosed as error:
            log.error("server.accept_failed cause=%s", error)

    def _arrive(self, listener: SocketListener, sock: socket.socket, place: object) -> None:
        """Has somebody wait here.

        Raises:
            OSError: they have gone; the socket is the caller's.
            ConnectionClosed: they cannot; the socket is closed.
        """
        assert self._epoll is not None
        words = place[:2] if isinstance(place, tuple) else f"unix:pid={peer_credentials(sock)[0]}"
        descriptor = sock.fileno()
        try:
            self._epoll.register(descriptor, _EVENTS)
        except OSError as error:
            # The system watches so many, and no more (fs.epoll.max_user_watches).
            sock.close()
            raise ConnectionClosed(in_plain_words(error)) from error
        # Also of whom another worker has passed on: their hello is whole, however long they had to wait for this one.
        now_ns = time.monotonic_ns()
        stranger = _Waiting(self, self._arrivals.number(), sock, words, listener, now_ns)
        self._waiting[descriptor] = stranger
        self._arrivals.arrive(stranger)
        if descriptor in self._waiting:
            self._scarcity.accepted(stranger, descriptor, now_ns)

    def _look(self) -> None:
        """Some of them have said something, or closed."""
        assert self._epoll is not None
        for descriptor, events in self._epoll.poll(0, LOOKS_AT_ONCE):
            stranger = self._waiting.get(descriptor)
            if stranger is not None:
                self._look_safely(stranger, ended=bool(events & _ENDED))

    def _look_safely(self, stranger: _Waiting, *, ended: bool) -> None:
        descriptor = stranger.socket.fileno()
        try:
            self._look_at(stranger, ended=ended)
        except Exception:
            # A fault of the broker's own ends the connection that has shown it, and no other one.
            log.exception("server.fault peer=%s", stranger.peer)
            if descriptor in self._waiting:
                self._close(stranger, _FAULT)

    def _look_at(self, stranger: _Waiting, *, ended: bool) -> None:
        scheme = stranger.listener.address.scheme
        try:
            start = stranger.socket.recv(self._bytes_max, _PEEK)
            whole = len(start) == self._bytes_max or self._is_whole[scheme](start)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(stranger, ConnectionClosed(in_plain_words(error)))
            return
        except ProtocolError as error:
            self.turn_away(stranger, error, start[:16])
            return
        if whole:
            worker = self._seat.worker_of(start, scheme) if self._seat is not None else -1
            if self._seat is None or worker == self._seat.number:
                self._promote(stranger)
            else:
                self._pass_on(stranger, self._seat, worker)
        elif ended or not start:
            self._close(stranger, _PEER_CLOSED)

    def _pass_on(self, stranger: _Waiting, seat: Seat, worker: int) -> None:
        """Gives a stranger to the worker that they have asked for; later, if it has too many to take at the moment."""
        try:
            gone = seat.give(worker, stranger.socket, stranger.listener)
        except ConnectionClosed as error:
            self.turn_away(stranger, error)
            return
        if not gone:
            self._delayed[stranger.socket.fileno()] = stranger
            return
        self._forget(stranger)
        stranger.socket.close()
        self._arrivals.leave(stranger)

    def _forget(self, stranger: _Waiting) -> None:
        """They do not wait here any more; what becomes of the socket is the caller's to say."""
        assert self._epoll is not None
        descriptor = stranger.socket.fileno()
        # By hand, because the connection lives on, and would be watched as long.
        self._epoll.unregister(descriptor)
        del self._waiting[descriptor]
        self._delayed.pop(descriptor, None)

    def _promote(self, stranger: _Waiting) -> None:
        self._forget(stranger)
        try:
            connection = stranger.listener.connection(stranger.socket, stranger.place)
        except (LimitExceeded, ConnectionClosed, OSError) as error:
            cause = error if isinstance(error, BrokerError) else ConnectionClosed(in_plain_words(error))
            self._end(stranger, 0, cause)
            return
        self._let_in(stranger.listener, connection, stranger)

    def turn_away(self, stranger: _Waiting, why: BrokerError, start: bytes = b"") -> None:
        """Tells a stranger why they cannot stay, and closes; `start` is what they have said first."""
        if isinstance(why, ProtocolError) and stranger.socket.fileno() in self._delayed:
            # Their hello is whole.
            why = _AWAY
        # Before TLS is spoken there is nobody who could be told.
        if stranger.listener.address.scheme != "tls":
            words = answer_to(why, start) if isinstance(why, ProtocolError) else _refusal(str(why))
            with suppress(OSError):
                stranger.socket.send(words, _SEND)
        self._close(stranger, why)

    def _close(self, stranger: _Waiting, cause: BrokerError) -> None:
        del self._waiting[stranger.socket.fileno()]
        self._delayed.pop(stranger.socket.fileno(), None)
        received_bytes = drop_received(stranger.socket, _DROPPED_READS_MAX, _DROPPED_BYTES)
        stranger.socket.close()
        self._end(stranger, received_bytes, cause)

    def _end(self, stranger: _Waiting, received_bytes: int, cause: BrokerError) -> None:
        self._arrivals.leave(stranger)
        self._scarcity.never_opened(stranger, received_bytes, cause, time.monotonic_ns())

    def go_on(self) -> None:
        """The state has ticked: those whose time is over and whom it has left there go in the loop's next turns."""
        for stranger in list(self._delayed.values()):
            self._look_safely(stranger, ended=False)
        if not self._expiring:
            self._expiring = True
            self._loop.call_soon(self._expire)

    def _expire(self) -> None:
        self._expiring = self._arrivals.tick(time.monotonic_ns())
        if self._expiring:
            self._loop.call_soon(self._expire)

    def close(self) -> None:
        """Closes all of them; a second call does nothing."""
        for stranger in list(self._waiting.values()):
            self._close(stranger, _SHUT_DOWN)
        if self._seat is not None:
            self._loop.remove_reader(self._seat.fileno())
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._loop.remove_reader(epoll.fileno())
            epoll.close()

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<Strangers waiting={len(self._waiting)}>"


@lru_cache(maxsize=16)
def _refusal(reason: str) -> bytes:
    return encode_greeting(Refusal(Code.LIMIT, reason))
