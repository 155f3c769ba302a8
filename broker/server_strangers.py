"""Connections over which nothing whole has been said yet: thousands of them, beside which sessions go on as ever.

Anybody can connect to a port and say nothing, or a byte a second. Until there is a whole hello, or a whole record of
TLS, such a connection is a socket and a few words about it, and no Connection, Session and SessionRecord:

    accept --> waits --whole hello--> Connection, Session: `let_in`
                 |---rubbish, too late, too many--> is told so, closed
                 `---closed by its peer----------> closed

What has come is looked at where it lies, in the kernel (MSG_PEEK), so that the session reads it as if nothing had been.
An epoll of their own tells once of each byte, and a few of them at a time, and in between everybody else has a turn.
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
from broker.limits import KIB, STRANGER_BYTES_MAX
from broker.protocol.bodies import Refusal
from broker.protocol.codes import Code
from broker.protocol.handshake import answer_to, decode_greeting, encode_greeting
from broker.server_scarcity import Scarcity
from broker.state.arrivals import Arrivals, Stranger
from broker.transport.base import Connection, Listener
from broker.transport.sockets import SocketListener, drop_received, in_plain_words
from broker.transport.tcp import address_text
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
_SHUT_DOWN: Final = ConnectionClosed("the broker is shutting down", Code.SHUTDOWN)


def _has_greeting(start: bytes) -> bool:
    """Whether there is a hello, for which a session is needed.

    Raises:
        ProtocolError: there never will be.
    """
    return decode_greeting(memoryview(start)) is not None


_IS_WHOLE: Final[Mapping[str, Callable[[bytes], bool]]] = {"tcp": _has_greeting, "tls": has_whole_record}
"""Where strangers wait, by the scheme, and until when. Elsewhere they are this host's, or a library's."""


class _Waiting:
    """A stranger, and the socket."""

    __slots__ = ("_of", "id", "listener", "opened_ns", "place", "socket")

    def __init__(
        self,
        of: Strangers,
        session_id: SessionId,
        sock: socket.socket,
        place: tuple[str, int],
        listener: SocketListener,
        now_ns: int,
    ) -> None:
        """`place`: what the socket says of the other end."""
        self._of = of
        self.id = session_id
        self.socket = sock
        self.place = place
        self.listener = listener
        self.opened_ns = now_ns

    @property
    def peer(self) -> str:
        return address_text(self.listener.address.scheme, self.place)

    @property
    def address(self) -> str:
        host = self.place[0]
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
    ) -> None:
        """Args:
        arrivals: bounds how many there are, and how long they may stay.
        scarcity: bounds what they take of what is scarce.
        let_in: called with whom there is to be a session for.
        """
        self._arrivals = arrivals
        self._scarcity = scarcity
        self._let_in = let_in
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, _Waiting] = {}
        """By their descriptors."""
        self._epoll: select.epoll | None = None
        self._expiring = False

    def wait_at(self, listener: Listener) -> bool:
        """Whether those who come to a listener have to wait here."""
        return listener.address.scheme in _IS_WHOLE

    def start(self, listeners: Sequence[Listener]) -> None:
        """From here on they may come to these. Ends with `close`."""
        if any(map(self.wait_at, listeners)):
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._look)

    def accept(self, listener: SocketListener) -> bool:
        """Has the next one at a listener wait here; says whether there was one.

        Raises:
            LimitExceeded, ConnectionClosed: as the listener's `accept`.
        """
        taken = listener.take()
        if taken is None:
            return False
        assert self._epoll is not None
        sock, place = taken
        assert isinstance(place, tuple)
        descriptor = sock.fileno()
        try:
            self._epoll.register(descriptor, _EVENTS)
        except OSError as error:
            # The system watches so many, and no more (fs.epoll.max_user_watches).
            sock.close()
            raise ConnectionClosed(in_plain_words(error)) from error
        now_ns = time.monotonic_ns()
        stranger = _Waiting(self, self._arrivals.number(), sock, (place[0], place[1]), listener, now_ns)
        self._waiting[descriptor] = stranger
        self._arrivals.arrive(stranger)
        if descriptor in self._waiting:
            self._scarcity.accepted(stranger, descriptor, now_ns)
        return True

    def _look(self) -> None:
        """Some of them have said something, or closed."""
        assert self._epoll is not None
        for descriptor, events in self._epoll.poll(0, LOOKS_AT_ONCE):
            stranger = self._waiting.get(descriptor)
            if stranger is None:
                continue
            try:
                self._look_at(stranger, ended=bool(events & _ENDED))
            except Exception:
                # A fault of the broker's own ends the connection that has shown it, and no other one.
                log.exception("server.fault peer=%s", stranger.peer)
                if descriptor in self._waiting:
                    self._close(stranger, _FAULT)

    def _look_at(self, stranger: _Waiting, *, ended: bool) -> None:
        try:
            start = stranger.socket.recv(STRANGER_BYTES_MAX, _PEEK)
            whole = len(start) == STRANGER_BYTES_MAX or _IS_WHOLE[stranger.listener.address.scheme](start)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(stranger, ConnectionClosed(in_plain_words(error)))
            return
        except ProtocolError as error:
            self.turn_away(stranger, error, start[:16])
            return
        if whole:
            self._promote(stranger)
        elif ended or not start:
            self._close(stranger, _PEER_CLOSED)

    def _promote(self, stranger: _Waiting) -> None:
        assert self._epoll is not None
        descriptor = stranger.socket.fileno()
        self._epoll.unregister(descriptor)
        del self._waiting[descriptor]
        try:
            connection = stranger.listener.connection(stranger.socket, stranger.place)
        except (LimitExceeded, ConnectionClosed, OSError) as error:
            cause = error if isinstance(error, BrokerError) else ConnectionClosed(in_plain_words(error))
            self._end(stranger, 0, cause)
            return
        self._let_in(stranger.listener, connection, stranger)

    def turn_away(self, stranger: _Waiting, why: BrokerError, start: bytes = b"") -> None:
        """Tells a stranger why they cannot stay, and closes; `start` is what they have said first."""
        # Before TLS is spoken there is nobody who could be told.
        if stranger.listener.address.scheme == "tcp":
            words = answer_to(why, start) if isinstance(why, ProtocolError) else _refusal(str(why))
            with suppress(OSError):
                stranger.socket.send(words, _SEND)
        self._close(stranger, why)

    def _close(self, stranger: _Waiting, cause: BrokerError) -> None:
        del self._waiting[stranger.socket.fileno()]
        received_bytes = drop_received(stranger.socket, _DROPPED_READS_MAX, _DROPPED_BYTES)
        stranger.socket.close()
        self._end(stranger, received_bytes, cause)

    def _end(self, stranger: _Waiting, received_bytes: int, cause: BrokerError) -> None:
        self._arrivals.leave(stranger)
        self._scarcity.never_opened(stranger, received_bytes, cause, time.monotonic_ns())

    def go_on(self) -> None:
        """The state has ticked: those whose time is over and whom it has left there go in the loop's next turns."""
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
