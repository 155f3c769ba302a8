"""One worker of a broker among the others: which connections are its own, and how the others are passed on.

All workers accept at the same sockets, which the process that has started them has bound. Whoever comes to any of them
says in the hello which one is meant; over TLS in that of TLS (transport/tls/hello.py), as the broker's own comes
encrypted. Until then a connection is a socket from which nothing has been read (server_strangers.py), so it can be
given away as it is, with all that has come over it, before the handshake of TLS begins:

    client --hello, worker 2--> worker 0 --SOCK_SEQPACKET: note, descriptor--> worker 2 --> let in

Each worker has one such pair of sockets. Their ends are in the hands of all, and of the process that has started them,
so that a worker that is started again finds there who has come to it meanwhile. What waits there is bounded by the
kernel (net.core.wmem_default, some 250 connections); who finds it full tries again on its next tick.
"""

from __future__ import annotations

import array
import errno
import logging
import socket
import struct
from collections.abc import Sequence
from typing import Final

from broker.errors import ConnectionClosed, ProtocolError
from broker.limits import WORKER_HELLO_BYTES_MAX
from broker.protocol.bodies import Hello
from broker.protocol.handshake import decode_greeting
from broker.transport.sockets import SocketListener, in_plain_words
from broker.transport.tls.hello import worker_named

log = logging.getLogger(__name__)

_NOTE: Final = struct.Struct("<I")
"""Of the listener at which somebody has come its place among all."""
_SEND: Final = socket.MSG_NOSIGNAL
_RECEIVE: Final = socket.MSG_CMSG_CLOEXEC
_ROOM_BYTES: Final = socket.CMSG_LEN(array.array("i").itemsize)
_FULL: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
"""The user has too many descriptors under way, or the system has no memory: it passes."""


class Doors:
    """By what connections reach their workers: for each of them, the end at which it takes and the end to give."""

    def __init__(self, workers: int) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers)]
        self.taking = [pair[0] for pair in pairs]
        self.giving = [pair[1] for pair in pairs]
        for end in (*self.taking, *self.giving):
            end.setblocking(False)

    def close(self) -> None:
        """Whoever waits there is cut off, when the workers have closed theirs too."""
        for end in (*self.taking, *self.giving):
            end.close()

    def __repr__(self) -> str:
        return f"<Doors workers={len(self.taking)}>"


class Seat:
    """The place of one worker.

    Attributes:
        number: of the worker, from 0.
        count: how many there are.
        listeners: where all of them accept, in the same order everywhere.
    """

    def __init__(self, number: int, listeners: Sequence[SocketListener], doors: Doors) -> None:
        self.number = number
        self.count = len(doors.taking)
        self.listeners = listeners
        self._doors = doors

    def fileno(self) -> int:
        """Readable when somebody is passed on to this worker."""
        return self._doors.taking[self.number].fileno()

    def worker_of(self, start: bytes, scheme: str) -> int:
        """Who is to let in whoever has said this first; this one, where that cannot be said, which tells them why."""
        if scheme == "tls":
            named = worker_named(start)
            return named if 0 <= named < self.count else self.number
        try:
            greeting = decode_greeting(memoryview(start))
        except ProtocolError:
            return self.number
        hello = None if greeting is None else greeting[0]
        return hello.worker if isinstance(hello, Hello) and 0 <= hello.worker < self.count else self.number

    def problem(self, hello: Hello) -> str:
        """Why a client cannot have a session here, in words; empty when it can."""
        if hello.worker < 0:
            return (
                f"topics are spread over the {self.count} workers of this broker, of which this client knows nothing: "
                "take the client library of the broker's version, or serve with --workers 1"
            )
        if hello.workers not in (0, self.count):
            return (
                f"this broker has {self.count} workers, and the client was told of {hello.workers}: "
                "topics have other places now; close the client and connect anew"
            )
        if hello.worker != self.number:
            return (
                f"this is worker {self.number} of {self.count}, and the hello for worker {hello.worker} cannot be "
                f"passed on: there is no such worker, the hello is longer than {WORKER_HELLO_BYTES_MAX} bytes, or over "
                "TLS ALPN does not name the worker, as the client library of the broker's version does"
            )
        return ""

    def give(self, worker: int, sock: socket.socket, listener: SocketListener) -> bool:
        """Passes a connection on, which stays the caller's to close.

        Returns:
            Whether it has gone; if not, it may later.

        Raises:
            ConnectionClosed: it cannot.
        """
        note = _NOTE.pack(self.listeners.index(listener))
        try:
            # Not send_fds and recv_fds, which do not pass flags on (3.11).
            rights = array.array("i", [sock.fileno()])
            self._doors.giving[worker].sendmsg([note], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], _SEND)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise ConnectionClosed(f"worker {worker} cannot be reached: {in_plain_words(error)}") from error
        return True

    def take(self) -> tuple[SocketListener, socket.socket] | None:
        """Whoever was passed on to this worker next: where they came, and their connection.

        The connection is the caller's. None when nobody waits, or when there was no descriptor left for them.
        """
        try:
            note, beside, _, _ = self._doors.taking[self.number].recvmsg(_NOTE.size, _ROOM_BYTES, _RECEIVE)
        except BlockingIOError:
            return None
        descriptors = array.array("i", b"".join(data for _, _, data in beside))
        if len(note) != _NOTE.size or not descriptors:
            # The kernel has closed the connection.
            log.error("worker.connection_lost worker=%d cause=%s", self.number, "no descriptor is left for it")
            return None
        (position,) = _NOTE.unpack(note)
        return self.listeners[position], socket.socket(fileno=descriptors[0])

    def __repr__(self) -> str:
        return f"<Seat {self.number} of {self.count} listeners={len(self.listeners)}>"
