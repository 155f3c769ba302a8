"""The unix transport: `unix:///path`, a stream socket with a file that says who may connect.

A daemon that was killed leaves its socket file behind, and the next one must get past it without ever taking a file
away from somebody else. So a file in the way is removed only if it is a socket and nobody answers behind it, and the
whole of look, remove, bind and listen is done under a guard, because a file whose owner is between bind and listen
looks just as dead. The guard is an abstract socket named after the path: no file to leave behind, and gone with its
process.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from broker.errors import ListenError
from broker.limits import LISTEN_BACKLOG
from broker.transport.addresses import Address
from broker.transport.base import Connection, Listener, Transport
from broker.transport.descriptors import LocalConnection, peer_credentials
from broker.transport.registry import register
from broker.transport.sockets import (
    SocketListener,
    connect_error,
    enlarge_send_buffer,
    listen_error,
)

_OWNER_ONLY: Final = 0o600
_TIMEVAL: Final = struct.Struct("ll")
_MICROSECONDS_PER_SECOND: Final = 1_000_000


class UnixTransport(Transport):
    """Streams over Unix-domain sockets, for processes of one user on one machine."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return "unix"

    def connect(self, address: Address, timeout_s: float) -> Connection:
        try:
            sock = _dial(address.path, timeout_s)
        except OSError as error:
            raise connect_error(address, error, timeout_s) from error
        return LocalConnection(sock, _process(os.getpid()), str(address))

    def listen(self, address: Address) -> Listener:
        try:
            return UnixListener(claimed_socket(address), address)
        except OSError as error:
            raise listen_error(address, error) from error


class SocketFile:
    """The file of a listening socket."""

    __slots__ = ("_identity", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Removes it, unless another daemon has taken the path over after somebody removed ours."""
        if _identity(self._path) == self._identity:
            Path(self._path).unlink(missing_ok=True)


class UnixListener(SocketListener):
    """Accepts unix connections, and removes its socket file when it closes."""

    __slots__ = ("_file",)

    def __init__(self, sock: socket.socket, address: Address) -> None:
        super().__init__(sock, address)
        self._file: SocketFile | None = SocketFile(address.path)

    def close(self) -> None:
        if self.fileno() < 0:
            return
        if self._file is not None:
            self._file.remove()
        super().close()

    def inherited(self) -> None:
        self._file = None

    def connection(self, sock: socket.socket, peer: object) -> Connection:
        enlarge_send_buffer(sock)
        return LocalConnection(sock, str(self.address), _process(peer_credentials(sock)[0]))


def _dial(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # When the backlog is full a non-blocking connect fails at once; in a blocking one the kernel waits for room, as
        # long as the send time-out says, where 0 would mean for ever.
        timeout_us = max(int(timeout_s * _MICROSECONDS_PER_SECOND), 1)
        timeout = _TIMEVAL.pack(*divmod(timeout_us, _MICROSECONDS_PER_SECOND))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        sock.connect(path)
        # A signal that interrupts that wait makes socket.connect return as if all were well; this raises ENOTCONN then.
        sock.getpeername()
        enlarge_send_buffer(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def claimed_socket(address: Address) -> socket.socket:
    """A socket that listens at a path at which nobody else does; the caller owns it and its file.

    Raises:
        ListenError: what is at the path is in use or is not a socket.
        OSError: the file cannot be made.
    """
    with _guard(address):
        _remove_stale(address)
        return _listening(address.path)


def _listening(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode of the socket, less the umask: it is not open to others for even a moment.
        os.fchmod(sock.fileno(), _OWNER_ONLY)
        sock.bind(path)
        sock.listen(LISTEN_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _guard(address: Address) -> socket.socket:
    """Holds the right to change the file at a path, against other daemons that start at the same moment."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(b"\0tensorbus-" + hashlib.sha256(os.fsencode(os.path.realpath(address.path))).hexdigest().encode())
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise ListenError(str(address), "another daemon is starting there; stop one of them") from error
    return sock


def _remove_stale(address: Address) -> None:
    """Removes the socket file of a daemon that is gone; leaves a path with nothing at it alone.

    Raises:
        ListenError: what is at the path is in use or is not a socket.
        OSError: it could not be looked at or removed.
    """
    path = Path(address.path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(str(address), "a file that is not a socket is there; remove it or choose another path")
    if _answers(address.path):
        raise listen_error(address, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))
    path.unlink(missing_ok=True)


def _answers(path: str) -> bool:
    """Whether a process listens behind a socket file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            # Its backlog is full: it is busy, not dead.
            return True
    return True


def _identity(path: str) -> tuple[int, int] | None:
    """The file at a path as the file system knows it; None when nothing is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _process(process_id: int) -> str:
    """The address of an end that has no path."""
    return f"unix:pid={process_id}"


register(UnixTransport())
