"""Connections and listeners over a stream socket of the kernel: what tcp, unix and inproc have in common.

`SocketWire.send` and `receive_into` are called once or twice per message, so they hold one system call each, and
leave every question that only matters after a failure (is this end closed? was there room for a byte?) to the path that
runs after one.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker.buffers import Buffer
from broker.errors import ConnectError, ConnectionClosed, LimitExceeded, ListenError
from broker.limits import IOV_BUFFERS_MAX, LOCAL_SEND_BUFFER_BYTES, SCRATCH_BYTES
from broker.transport.addresses import Address
from broker.transport.base import Connection, Listener
from broker.transport.calls import NOTHING, read_once, write_once
from broker.wires import Wire

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

_NOTHING: Final = NOTHING
# Lingering for zero seconds is how one asks tcp for a reset (socket(7), struct linger); Unix-domain sockets ignore it.
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)

_DROPPED_READS_MAX: Final = 128
"""Reads of SCRATCH_BYTES that close spends on bytes nobody wants: more than tcp's default receive buffer holds."""

_WORDS: Final = {
    errno.ECONNREFUSED: "nobody listens there; is the broker running, and is the address right?",
    errno.ENOENT: "there is no such file; is the broker running, and is the path right?",
    errno.EHOSTUNREACH: "no route to the host; is it up, and is the address right?",
    errno.ENETUNREACH: "no route to its network; is the address right?",
    errno.EACCES: "permission denied; a socket file lets only its owner in, a port below 1024 only a privileged user",
    errno.EADDRINUSE: "the address is in use; stop what listens there or choose another one",
    errno.EADDRNOTAVAIL: "the host is not an address of this machine; 0.0.0.0 stands for all that are",
    errno.EMFILE: "this process may open no more files; raise its limit (ulimit -n)",
    errno.ECONNRESET: "the peer reset the connection",
    errno.EPIPE: "the peer closed the connection",
    errno.ETIMEDOUT: "the peer stopped answering",
}

# accept(2): errors of the connection that waited, not of the listener.
_ACCEPT_TRANSIENT: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.EOPNOTSUPP,
        errno.EPERM,
    }
)


def in_plain_words(error: OSError) -> str:
    """What an error of a socket call means, and what to do about it."""
    if isinstance(error, socket.gaierror):
        return f"the host name cannot be looked up ({error.strerror})"
    return _WORDS.get(error.errno or 0) or error.strerror or str(error)


def connect_error(address: Address, error: OSError, timeout_s: float) -> ConnectError:
    """The error of a dial that failed; EAGAIN is how one over a Unix-domain socket runs out of time."""
    if isinstance(error, (TimeoutError, BlockingIOError)):
        return ConnectError(
            str(address), f"no answer within {timeout_s:g} s; is the host up, and does a firewall block it?"
        )
    return ConnectError(str(address), in_plain_words(error))


def listen_error(address: Address, error: OSError) -> ListenError:
    """The error of a listener that could not start."""
    if error.errno == errno.ENOENT:
        return ListenError(str(address), "the folder of its socket file does not exist; create it")
    return ListenError(str(address), in_plain_words(error))


def enlarge_send_buffer(sock: socket.socket) -> None:
    """Lets a Unix-domain socket take whole chunks; net.core.wmem_max may cap it, and does so silently."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_SEND_BUFFER_BYTES)


def drop_received(sock: socket.socket, reads_max: int, read_bytes: int) -> int:
    """Reads what is there, for nobody: closing over unread bytes makes the kernel send a reset, and drop what the peer
    has yet to read.

    Args:
        sock: the socket.
        reads_max: bounds the reads,
        read_bytes: each of which takes so much at most.

    Returns:
        How many bytes there were.
    """
    dropped_bytes = 0
    try:
        for _ in range(reads_max):
            size = len(sock.recv(read_bytes, socket.MSG_DONTWAIT))
            dropped_bytes += size
            if not size:
                break
    except OSError:
        # Nothing more is there, or the link has failed already: either way nothing is left to drop.
        return dropped_bytes
    return dropped_bytes


class SocketWire(Wire):
    """The bytes of a connected stream socket that does not block. It is its connection's, and ends with it."""

    __slots__ = ("_descriptor", "_socket")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._descriptor = sock.fileno()

    def end(self) -> None:
        """Its connection is about to close the socket, whose number is free for another file then."""
        self._descriptor = -1

    def receive_into(self, buffers: list[memoryview]) -> int:
        return self.receive(buffers, None)

    def receive(self, buffers: list[memoryview], descriptors: list[int] | None) -> int:
        """As `receive_into`, and takes the open files that came with the bytes; None takes none."""
        size: int
        try:
            if cython.compiled and len(buffers) <= 2:
                size = _receive(self._descriptor, buffers, descriptors)  # type: ignore[name-defined]  # noqa: F821
            else:
                size = read_once(self._socket, buffers[:IOV_BUFFERS_MAX], descriptors)
        except OSError as error:
            raise self.failure(error) from error
        if size > 0:
            return size
        if size != _NOTHING and sum([buffer.nbytes for buffer in buffers]) > 0:
            raise ConnectionClosed("the peer closed the connection")
        return 0

    def send(self, buffers: list[Buffer]) -> int:
        return self.write(buffers)

    def write(self, buffers: list[Buffer]) -> int:
        """Sends, and nothing beside the bytes."""
        size: int
        try:
            if cython.compiled and len(buffers) <= 8:
                size = _send(self._descriptor, buffers)  # type: ignore[name-defined]  # noqa: F821
            else:
                size = write_once(self._socket, buffers[:IOV_BUFFERS_MAX])
        except OSError as error:
            raise self.failure(error) from error
        return size if size > 0 else 0

    def failure(self, error: OSError) -> ConnectionClosed:
        """What an error of the system means."""
        closed_here = self._socket.fileno() < 0
        return ConnectionClosed("it was closed on this side" if closed_here else in_plain_words(error))


class SocketConnection(Connection):
    """A connection over a connected stream socket, which it owns."""

    __slots__ = ("_bytes", "_socket")

    def __init__(self, sock: socket.socket, local_address: str, peer_address: str) -> None:
        super().__init__(local_address, peer_address)
        sock.setblocking(False)
        self._socket = sock
        self._bytes = SocketWire(sock)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        return self._bytes.receive_into(list(buffers))

    def send(self, buffers: Sequence[Buffer]) -> int:
        return self._bytes.send(list(buffers))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._bytes.end()
        drop_received(self._socket, _DROPPED_READS_MAX, SCRATCH_BYTES)
        self._socket.close()

    def end_sending(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            # The link is gone, and with it the end to be read.
            return

    def disown(self) -> None:
        self._closed = True
        self._bytes.end()
        self._socket.close()

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._bytes.end()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._socket.close()


class SocketListener(Listener):
    """A listener over a listening stream socket, which it owns; a subclass makes the connections."""

    __slots__ = ("_address", "_socket", "_system_files_max")

    def __init__(self, sock: socket.socket, address: Address) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._address = address
        # Read now: when the system has no descriptor left, neither is there one to read this with.
        self._system_files_max = int(Path("/proc/sys/fs/file-max").read_text())

    @property
    def address(self) -> Address:
        return self._address

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> Connection | None:
        taken = self.take()
        return None if taken is None else self.connection(*taken)

    def take(self) -> tuple[socket.socket, object] | None:
        """As `accept`, but gives the bare socket, which the caller owns, and what accept(2) said of the other end.

        With `connection` it becomes what `accept` would have given; whoever waits meanwhile costs next to nothing.
        """
        try:
            return self._socket.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _ACCEPT_TRANSIENT:
                return None
            raise self._failure(error) from error

    def close(self) -> None:
        self._socket.close()

    def inherited(self) -> None:  # noqa: B027 - most leave nothing behind
        """Says that this process has the listener from another one, whose files are not to be removed here."""

    @abstractmethod
    def connection(self, sock: socket.socket, peer: object) -> Connection:
        """The connection over a socket that was accepted; `peer` is what accept(2) said of the other end.

        Raises:
            LimitExceeded, ConnectionClosed: as `accept`; the socket is closed.
        """

    def _failure(self, error: OSError) -> LimitExceeded | ConnectionClosed:
        if error.errno == errno.EMFILE:
            files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return LimitExceeded("RLIMIT_NOFILE", files_max + 1, files_max, "raise it with ulimit -n or LimitNOFILE=")
        if error.errno == errno.ENFILE:
            files_max = self._system_files_max
            return LimitExceeded("fs.file-max", files_max + 1, files_max, "raise it with sysctl")
        if self.fileno() < 0:
            return ConnectionClosed("the listener was closed on this side")
        return ConnectionClosed(f"the listener failed: {os.strerror(error.errno or 0)}")
