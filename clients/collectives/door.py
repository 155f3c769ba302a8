"""Where a client meets the other members of its groups: it lets them in, and goes to them (docs/wire.md section 15).

Two members are linked by a connection that the one with the lower rank has dialled. Each proves to the other that it
knows the generation's secret before anything else is said:

    lower rank   --- connect, greeting with its seal --->   higher rank
                 <---------- answer's seal -------------

Two on one host meet over a socket that no network knows (`ports.listen_nearby`), over which words and bytes are quicker
than over the loopback device; if it is not there, as everybody else.

All of it happens on one thread, which waits for many things at once and for none of them longer than is said in
`limits`. A stranger gets no answer, and a line in the log; somebody who knocks before this client has heard of the
generation waits outside until it has.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from broker.errors import InvalidValue
from broker.limits_links import LINK_DIAL_S, LINK_HALF_OPEN_MAX, LINK_HELLO_S, LINK_LANES
from broker.protocol.links import (
    HELLO_BYTES,
    MAGIC,
    SEAL_BYTES,
    Greeting,
    Peer,
    address_of,
    address_text,
    answer,
    greet,
    is_answer,
    is_greeting,
    read_greeting,
)
from clients.collectives.link_pace import set_pace
from clients.collectives.ports import listen_nearby, name_nearby
from clients.connection.wakeup import Wakeup

log = logging.getLogger(__name__)

ACCEPT_PAUSE_S: Final = 0.2
"""After the process has run out of descriptors: when to try again."""
NEARBY: Final = "this host"
"""In words, where a socket leads that no network knows."""


class Meeting:
    """The links of one member in one generation, while they are made.

    Attributes:
        links: those that are made, by rank and lane.
        problem: which rank cannot be reached and why, once that is so.
    """

    def __init__(
        self,
        number: int,
        generation: int,
        rank: int,
        peers: Sequence[Peer],
        secret: bytes,
        done: Callable[[Meeting], None],
    ) -> None:
        """`done` is called, on the door's thread, when all links are made or one cannot be."""
        self.key = number, generation
        self.rank = rank
        self.peers = {peer.rank: peer for peer in peers if peer.rank != rank}
        self.host = next((peer.host for peer in peers if peer.rank == rank), "")
        self.ranks = tuple(peer.rank for peer in peers)
        self.secret = secret
        self.links: dict[tuple[int, int], socket.socket] = {}
        self.problem: tuple[int, str] | None = None
        self.over = False
        self.cancelled = False
        self._done = done

    def add(self, rank: int, lane: int, sock: socket.socket) -> None:
        """A link is made."""
        set_pace(sock)
        self.links[rank, lane] = sock
        if self.over:
            self.close()
        elif len(self.links) == len(self.peers) * LINK_LANES:
            self.end()

    def fail(self, rank: int, cause: str) -> None:
        """A rank cannot be reached."""
        if not self.over:
            self.problem = rank, cause
            self.end()

    def end(self) -> None:
        """Nothing more will come of it."""
        self.over = True
        self._done(self)

    def take(self) -> list[list[int]]:
        """The descriptors of the links, by position and lane; they are the caller's."""
        links, self.links = self.links, {}
        return [
            [] if rank == self.rank else [links[rank, lane].detach() for lane in range(LINK_LANES)]
            for rank in self.ranks
        ]

    def close(self) -> None:
        """Closes the links that nobody has taken, and those that are still made. Any thread may call."""
        self.over = True
        links, self.links = self.links, {}
        for sock in links.values():
            sock.close()

    def __repr__(self) -> str:
        return f"<Meeting group={self.key[0]} generation={self.key[1]} rank={self.rank} links={len(self.links)}>"


class _Caller:
    """Somebody who has come, and has not proved yet who he is."""

    __slots__ = ("data", "deadline", "greeting", "name", "sock")

    def __init__(self, sock: socket.socket, name: str, deadline: float) -> None:
        self.sock = sock
        self.name = name
        self.deadline = deadline
        self.data = b""
        self.greeting: Greeting | None = None


class _Visit:
    """A way to another member: one of its addresses after the other."""

    __slots__ = ("addresses", "asked", "data", "deadline", "greeting", "meeting", "patience_s", "peer", "place", "sock")

    def __init__(self, meeting: Meeting, peer: Peer, lane: int) -> None:
        self.meeting = meeting
        self.peer = peer
        self.greeting = Greeting(*meeting.key, meeting.rank, peer.rank, lane)
        nearby = [name_nearby(peer.addresses[0])] if meeting.host and peer.host == meeting.host else []
        self.addresses = deque[str | bytes]([*nearby, *peer.addresses])
        self.patience_s = LINK_DIAL_S / len(self.addresses)
        self.place = ""
        self.sock: socket.socket | None = None
        self.deadline = 0.0
        self.asked = False
        self.data = b""

    def go(self, cause: str) -> None:
        """Tries the next address; without one the meeting has failed, for a cause."""
        self.leave()
        if not self.addresses:
            self.meeting.fail(self.peer.rank, cause)
            return
        address = self.addresses.popleft()
        self.place = address if isinstance(address, str) else NEARBY
        self.deadline = time.monotonic() + self.patience_s
        try:
            family, where = _place_of(address)
            self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            error = self.sock.connect_ex(where)
        except (InvalidValue, OSError) as problem:
            self.go(f"{self.place}: {problem}")
            return
        if error not in (0, errno.EINPROGRESS):
            self.go(f"{self.place}: {os.strerror(error)}")

    def leave(self) -> None:
        """Hangs up."""
        sock, self.sock = self.sock, None
        self.asked, self.data = False, b""
        if sock is not None:
            sock.close()

    def look(self) -> None:
        """Something has happened on the connection."""
        assert self.sock is not None
        name = _name(self.sock)
        try:
            if not self.asked:
                error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not error and self.sock.getsockname() == self.sock.getpeername():
                    error = errno.ECONNREFUSED
                if error:
                    raise OSError(error, os.strerror(error))
                self.sock.send(greet(self.greeting, self.meeting.secret))
                self.asked = True
                return
            part = self.sock.recv(SEAL_BYTES - len(self.data))
        except BlockingIOError:
            return
        except OSError as error:
            self.go(f"{self._where(name)}: {error.strerror}")
            return
        self.data += part
        if not part:
            self.go(f"{self._where(name)}: the connection was closed in place of an answer")
        elif len(self.data) == SEAL_BYTES:
            if not is_answer(self.data, self.greeting, self.meeting.secret):
                self.go(f"{self._where(name)}: somebody else answers")
                return
            sock, self.sock = self.sock, None
            self.meeting.add(self.peer.rank, self.greeting.lane, sock)

    def _where(self, name: str) -> str:
        return name or self.place


class Door:
    """A client's own place to listen, and its thread. Any thread may call.

    Attributes:
        address: where the others knock.
    """

    def __init__(self, sock: socket.socket) -> None:
        """`sock` listens, does not block, and is the door's from now on.

        Raises:
            OSError: this process may open no more files, or start no more threads; the socket is not the door's.
        """
        host, port = sock.getsockname()[:2]
        self.address = address_text(host, port)
        self._wake = Wakeup()
        nearby = listen_nearby(self.address)
        self._socks = [sock] if nearby is None else [sock, nearby]
        self._lock = threading.Lock()
        self._new: deque[Meeting] = deque()
        self._meetings: dict[tuple[int, int], Meeting] = {}
        self._callers: list[_Caller] = []
        self._visits: list[_Visit] = []
        self._closing = False
        self._paused_until = 0.0
        self._process = os.getpid()
        try:
            threading.Thread(target=self._run, name="tensorbus-door", daemon=True).start()
        except BaseException as error:
            # Ctrl-C may come when it has started; then it ends by itself.
            self._closing = True
            self._rouse()
            if not isinstance(error, RuntimeError):
                raise
            self._wake.close()
            if nearby is not None:
                nearby.close()
            raise OSError(errno.EAGAIN, str(error)) from error

    def meet(self, meeting: Meeting) -> None:
        """Makes the links of a meeting."""
        self._new.append(meeting)
        self._rouse()

    def cancel(self, meeting: Meeting) -> None:
        """Nobody wants the links of a meeting any more."""
        meeting.over = meeting.cancelled = True
        self._rouse()

    def close(self) -> None:
        """Lets nobody in any more; links that are made stay. Does not wait for the thread."""
        self._closing = True
        if os.getpid() == self._process:
            self._rouse()
        else:
            # In a forked child there is no such thread, and nobody has the lock.
            self._lock = threading.Lock()
            self._end()

    def _rouse(self) -> None:
        with self._lock:
            self._wake.set()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._begin()
                self._expire(time.monotonic())
                self._wait()
        except Exception:
            # A fault of ours: the meetings that are left fail at the broker's deadline.
            log.exception("door.failed address=%s", self.address)
        finally:
            self._end()

    def _end(self) -> None:
        for sock in self._socks:
            sock.close()
        for caller in self._callers:
            caller.sock.close()
        for visit in self._visits:
            visit.leave()
        for meeting in (*self._meetings.values(), *self._new):
            meeting.over = True
            meeting.close()
        with self._lock:
            self._wake.close()

    def _begin(self) -> None:
        """Takes up meetings that are new, and lets go of those that are over."""
        while self._new:
            meeting = self._new.popleft()
            if meeting.over:
                continue
            self._meetings[meeting.key] = meeting
            visits = [
                _Visit(meeting, peer, lane)
                for rank, peer in meeting.peers.items()
                if rank > meeting.rank
                for lane in range(LINK_LANES)
            ]
            self._visits += visits
            for visit in visits:
                if not meeting.over:
                    visit.go("it has no address")
        for caller in [caller for caller in self._callers if caller.greeting is not None]:
            self._let_in(caller)
        for meeting in [meeting for meeting in self._meetings.values() if meeting.over]:
            del self._meetings[meeting.key]
            if meeting.cancelled:
                meeting.close()
        for visit in [visit for visit in self._visits if visit.meeting.over or visit.sock is None]:
            visit.leave()
            self._visits.remove(visit)

    def _expire(self, now: float) -> None:
        for visit in [visit for visit in self._visits if visit.sock is not None and visit.deadline <= now]:
            visit.go(f"{visit._where('')}: no answer within {LINK_DIAL_S:g} s")
        for caller in [caller for caller in self._callers if caller.deadline <= now]:
            self._refuse(caller, f"nothing that is expected here within {LINK_HELLO_S:g} s")

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._wake.descriptor, select.POLLIN)
        now = time.monotonic()
        deadlines = [caller.deadline for caller in self._callers] + [visit.deadline for visit in self._visits]
        if self._paused_until > now:
            deadlines.append(self._paused_until)
        waiting: dict[int, Callable[[], None]] = {}
        for sock in self._socks if self._paused_until <= now else ():
            poller.register(sock, select.POLLIN)
            waiting[sock.fileno()] = lambda sock=sock: self._accept(sock)  # type: ignore[misc]
        for caller in self._callers:
            if caller.greeting is None:
                poller.register(caller.sock, select.POLLIN)
                waiting[caller.sock.fileno()] = lambda caller=caller: self._hear(caller)  # type: ignore[misc]
        for visit in self._visits:
            if visit.sock is not None:
                poller.register(visit.sock, select.POLLIN if visit.asked else select.POLLOUT)
                waiting[visit.sock.fileno()] = visit.look
        timeout_s = max(0.0, min(deadlines) - now) if deadlines else None
        for descriptor, _ in poller.poll(None if timeout_s is None else timeout_s * 1000 + 1):
            if descriptor == self._wake.descriptor:
                self._wake.clear()
            else:
                waiting[descriptor]()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("door.paused address=%s cause=%s", self.address, error)
            self._paused_until = time.monotonic() + ACCEPT_PAUSE_S
            return
        sock.setblocking(False)
        if len(self._callers) >= LINK_HALF_OPEN_MAX:
            self._refuse(self._callers[0], f"over {LINK_HALF_OPEN_MAX} wait to be let in")
        self._callers.append(_Caller(sock, _name(sock), time.monotonic() + LINK_HELLO_S))

    def _hear(self, caller: _Caller) -> None:
        """Reads what somebody says who has come."""
        if caller not in self._callers:
            return
        try:
            part = caller.sock.recv(HELLO_BYTES - len(caller.data))
        except BlockingIOError:
            return
        except OSError:
            part = b""
        caller.data += part
        if not part:
            self._refuse(caller, "it went away", logging.INFO)
        elif not caller.data.startswith(MAGIC[: len(caller.data)]):
            self._refuse(caller, "what it says is no greeting")
        elif len(caller.data) == HELLO_BYTES:
            caller.greeting = read_greeting(caller.data)
            if caller.greeting is None:
                self._refuse(caller, "what it says is no greeting")
            else:
                self._let_in(caller)

    def _let_in(self, caller: _Caller) -> None:
        """Makes a link of somebody who has said who he is, if the meeting has begun."""
        greeting = caller.greeting
        assert greeting is not None
        meeting = self._meetings.get((greeting.group, greeting.generation))
        if meeting is None or meeting.over:
            return
        expected = greeting.target == meeting.rank > greeting.source and greeting.source in meeting.peers
        if not expected or greeting.lane >= LINK_LANES or (greeting.source, greeting.lane) in meeting.links:
            self._refuse(caller, f"nobody expects {greeting}")
        elif not is_greeting(caller.data, greeting, meeting.secret):
            self._refuse(caller, f"its seal is wrong, as rank {greeting.source} of group number {greeting.group}")
        else:
            try:
                caller.sock.send(answer(greeting, meeting.secret))
            except OSError as error:
                self._refuse(caller, f"it went away: {error}", logging.INFO)
                return
            self._callers.remove(caller)
            meeting.add(greeting.source, greeting.lane, caller.sock)

    def _refuse(self, caller: _Caller, cause: str, level: int = logging.WARNING) -> None:
        log.log(level, "door.refused address=%s peer=%s cause=%s", self.address, caller.name, cause)
        self._callers.remove(caller)
        caller.sock.close()

    def __repr__(self) -> str:
        return f"<Door {self.address} meetings={len(self._meetings)} callers={len(self._callers)}>"


def _place_of(address: str | bytes) -> tuple[int, tuple[str, int] | bytes]:
    """What a socket needs to go to an address: its family, and what the system calls it.

    Raises:
        InvalidValue: it is none.
    """
    if isinstance(address, bytes):
        return socket.AF_UNIX, address
    host, port = address_of(address)
    return socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)


def _name(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return NEARBY
    with suppress(OSError):
        host, port = sock.getpeername()[:2]
        return address_text(host, port)
    return ""
