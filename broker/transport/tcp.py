"""The tcp transport: `tcp://host:port`."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from dataclasses import replace
from ipaddress import ip_address
from typing import Final, cast

from broker.errors import ConnectError
from broker.limits import NETWORK_BACKLOG
from broker.transport.addresses import Address
from broker.transport.base import Connection, Listener, Transport
from broker.transport.registry import register
from broker.transport.sockets import SocketConnection, SocketListener, connect_error, listen_error
from broker.wires import Wire

log = logging.getLogger(__name__)

_ATTEMPT_S_MIN: Final = 0.001
"""A socket with a time-out of zero would not wait at all."""
_PACING: Final = b"bbr"
_UNPACED: Final = b"reno"
"""What the kernel always has, and lets everybody have (tcp(7), tcp_allowed_congestion_control)."""
_NAME_BYTES: Final = 16
"""Of a congestion control's name in the kernel (linux/include/net/tcp.h, TCP_CA_NAME_MAX)."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


class TcpTransport(Transport):
    """Streams over TCP, IPv4 or IPv6, each small write leaving at once."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return "tcp"

    def connect(self, address: Address, timeout_s: float) -> Connection:
        return _connected(*dialled_socket(address, timeout_s))

    def listen(self, address: Address) -> Listener:
        try:
            sock = listening_socket(*look_up_own(address))
            return TcpListener(sock, replace(address, port=sock.getsockname()[1]))
        except OSError as error:
            raise listen_error(address, error) from error


class TcpConnection(SocketConnection):
    """A connection over TCP."""

    __slots__ = ()

    @property
    def wire(self) -> Wire:
        return self._bytes

    @property
    def same_host(self) -> bool:
        # An address that is ours at one end and reached from itself at the other is this host's.
        try:
            return bool(self._socket.getsockname()[0] == self._socket.getpeername()[0])
        except OSError:
            return False

    @property
    def local_host(self) -> str:
        try:
            return str(self._socket.getsockname()[0])
        except OSError:
            return ""


class TcpListener(SocketListener):
    """Accepts tcp connections."""

    __slots__ = ()

    def connection(self, sock: socket.socket, peer: object) -> Connection:
        assert isinstance(peer, tuple)
        return _connected(prepared(sock), (peer[0], peer[1]))


def dialled_socket(address: Address, timeout_s: float) -> tuple[socket.socket, SocketAddress]:
    """A socket that is connected with an address, and the address of its end there; the caller owns it.

    Raises:
        ConnectError: see `Transport.connect`.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        candidates = look_up(address)
    except OSError as error:
        raise connect_error(address, error, timeout_s) from error
    failures: list[ConnectError] = []
    for tried, (family, target) in enumerate(candidates):
        # An equal share of what is left: a first address that swallows packets leaves time for the second.
        attempt_s = max((deadline_s - time.monotonic()) / (len(candidates) - tried), _ATTEMPT_S_MIN)
        try:
            return _dial(family, target, attempt_s), target
        except OSError as error:
            failures.append(connect_error(replace(address, host=target[0], port=target[1]), error, attempt_s))
    if len({failure.reason for failure in failures}) == 1:
        raise ConnectError(str(address), failures[0].reason)
    raise ConnectError(str(address), "; ".join(f"{failure.address}: {failure.reason}" for failure in failures))


def look_up(address: Address) -> list[tuple[int, SocketAddress]]:
    """The address families and socket addresses that a host stands for, best first (RFC 6724)."""
    # As bytes, because for a str Python insists on IDNA and raises UnicodeError over, say, two dots in a row.
    found = socket.getaddrinfo(address.host.encode(), address.port, type=socket.SOCK_STREAM)
    return [(family, cast("SocketAddress", target)) for family, _, _, _, target in found]


def look_up_own(address: Address) -> tuple[int, SocketAddress]:
    """The one of them to listen at."""
    # `localhost` may stand for ::1 too, but what everybody dials by number is 127.0.0.1.
    return min(look_up(address), key=lambda found: found[0] != socket.AF_INET)


def is_loopback(address: Address) -> bool:
    """Whether a host, at which somebody is to listen, is this one's loopback.

    Raises:
        ListenError: it cannot be looked up.
    """
    try:
        return ip_address(look_up_own(address)[1][0].partition("%")[0]).is_loopback
    except OSError as error:
        raise listen_error(address, error) from error


def _dial(family: int, target: SocketAddress, attempt_s: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(attempt_s)
        sock.connect(target)
        if sock.getsockname() == target:
            # With nobody at a port of the ephemeral range, TCP may connect a socket to itself (RFC 9293, 3.5).
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return prepared(sock)
    except BaseException:
        sock.close()
        raise


def listening_socket(family: int, target: SocketAddress) -> socket.socket:
    """A socket that listens, which the caller owns.

    Raises:
        OSError: the address is in use, not allowed or not of this machine.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A daemon that restarts takes its port back although old connections still linger in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(NETWORK_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def prepared(sock: socket.socket) -> socket.socket:
    """A connected socket that does not wait for fuller packets, and notices a dead peer in the end."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def unpace(sock: socket.socket) -> None:
    """Lets bytes go within a host as they are written, for a connected socket of which both ends are there.

    BBR measures a wire and spreads what is sent over the time that it takes there. Within a host there is none, and
    what it finds is how fast the reader reads. Between hosts, the choice is theirs.
    """
    try:
        if sock.getsockname()[0] != sock.getpeername()[0]:
            return
        present = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES)
        if present.rstrip(b"\0") == _PACING:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _UNPACED)
    except OSError as error:
        # It has ended already, which its reader finds out; or the kernel has no choice to offer.
        log.debug("tcp.paced cause=%s", error)


def _connected(sock: socket.socket, peer: SocketAddress) -> TcpConnection:
    unpace(sock)
    return TcpConnection(sock, address_text("tcp", sock.getsockname()), address_text("tcp", peer))


def address_text(scheme: str, target: SocketAddress) -> str:
    """A socket's address, fit for a log."""
    return str(Address(scheme, host=target[0], port=target[1]))


register(TcpTransport())
