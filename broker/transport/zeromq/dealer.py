"""The end that dials: one DEALER socket, which has one link in its life.

ZeroMQ would connect again by itself and go on with what was not lost. It is told not to: a session that has lost its
link is over, and the client begins another one and says what may be missing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Final
from weakref import WeakSet

import zmq

from broker.buffers import Buffer
from broker.errors import ConnectError
from broker.transport.addresses import Address
from broker.transport.readiness import Readiness
from broker.transport.sockets import connect_error
from broker.transport.zeromq.closing import close_when_read
from broker.transport.zeromq.curve import secure_dialler
from broker.transport.zeromq.messages import OPEN, Malformed, read_header
from broker.transport.zeromq.sockets import end_of, endpoint_of, events_of, identity_of, make_socket
from broker.transport.zeromq.stream import PeerGone, Stream, put_parts

_BURST: Final = 64
"""Messages that are taken before ZeroMQ is asked again whether there are any, which costs a system call."""
_NOT_ALIKE: Final = (
    "what listens there does not speak ZeroMQ, or not with these CURVE keys; does it want the option curve= or not?"
)
_FAILED: Final[dict[int, str]] = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _NOT_ALIKE,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _NOT_ALIKE,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not accept these CURVE keys",
    zmq.EVENT_DISCONNECTED: _NOT_ALIKE,
}
_CLOSED: Final = zmq.EVENT_CLOSED
_EVENTS: Final = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _CLOSED | sum(_FAILED)


class DealerStream(Stream):
    """A connection that was dialled."""

    __slots__ = ("__weakref__", "_link", "_socket")

    def __init__(
        self, socket: zmq.Socket[bytes], readiness: Readiness, local_address: str, peer_address: str, link: int
    ) -> None:
        """Args:
        socket: with its link up; the stream owns it from here on, and the readiness.
        readiness: includes the socket's descriptor.
        local_address: see Connection.
        peer_address: see Connection.
        link: the descriptor of the link.
        """
        super().__init__(threading.Lock(), readiness, local_address, peer_address)
        self._socket = socket
        self._link = (link, identity_of(link))
        # ZeroMQ's descriptor tells of what comes after the first look, and not before.
        self._pump()
        self._tell()
        _open.add(self)

    def _put(self, parts: Sequence[Buffer]) -> None:
        try:
            put_parts(self._socket, parts)
        except zmq.ZMQError as error:
            # Without a mark to be over, only a socket that has lost its link takes nothing.
            raise PeerGone from error

    def _pump(self) -> None:
        socket, burst = self._socket, 1
        try:
            while (events := events_of(socket)) & zmq.POLLIN:
                for _ in range(burst):
                    try:
                        first = socket.recv(zmq.NOBLOCK, copy=False)
                    except zmq.Again:
                        break
                    parts, part = [first.buffer], first
                    while part.more:
                        part = socket.recv(zmq.NOBLOCK, copy=False)
                        parts.append(part.buffer)
                    if self._end is None:
                        self.arrived(*read_header(parts[0]), parts)
                burst = _BURST
        except Malformed as error:
            self.break_off(str(error))
            return
        if not events & zmq.POLLOUT and self._lost is None:
            self._peer_gone()

    def _let_go(self, *, linger: bool) -> None:
        self._readiness.exclude(self._socket.fileno())
        if linger and self._end is None:
            close_when_read(self._socket)
        else:
            self._socket.close(None if linger else 0)

    def disown(self) -> None:
        if self._closed:
            return
        self._closed = True
        # ZeroMQ's threads have stayed with the parent, and so the socket is left as it is. But the peer has to see the
        # end of the parent, and would not while the child has the link open.
        descriptor, identity = self._link
        if identity and identity_of(descriptor) == identity:
            os.close(descriptor)
        self._readiness.close()


_open: Final[WeakSet[DealerStream]] = WeakSet()
"""The connections that this process has dialled and may not have closed."""

# They are the parent's.
os.register_at_fork(after_in_child=_open.clear)


def close_all() -> None:
    """At the process's end: says at each connection that it is over, so that a link is not closed over what nobody has
    read, and what was sent is not lost with it."""
    for stream in list(_open):
        stream.close()


def dial(address: Address, target: Address, timeout_s: float) -> DealerStream:
    """Opens a connection.

    Args:
        address: what the caller asked for.
        target: the same with a host that needs no looking up.
        timeout_s: for the whole attempt, in seconds.

    Raises:
        ConnectError: with what it met; the reason is empty when nobody accepted the link.
    """
    deadline_s = time.monotonic() + timeout_s
    socket = monitor = None
    try:
        socket = make_socket(zmq.DEALER, target)
        # The defaults would connect again, and wait for ever meanwhile.
        socket.set(zmq.RECONNECT_IVL, -1)
        secure_dialler(socket, address)
        monitor = socket.get_monitor_socket(_EVENTS)
        socket.connect(endpoint_of(target))
        link = _wait_for_link(monitor, address, deadline_s, timeout_s)
        end_monitor(socket, monitor)
        local_address = end_of(link, address.scheme, peer=False)
        readiness = Readiness()
        try:
            readiness.include(socket.fileno())
            socket.send(OPEN, zmq.NOBLOCK)
            return DealerStream(socket, readiness, local_address, str(address), link)
        except BaseException:
            readiness.close()
            raise
    except BaseException as error:
        if socket is not None:
            if monitor is not None:
                end_monitor(socket, monitor)
            socket.close(0)
        if isinstance(error, zmq.ZMQError):
            raise ConnectError(str(address), str(error)) from error
        if isinstance(error, OSError):
            raise connect_error(address, error, timeout_s) from error
        raise


def _wait_for_link(monitor: zmq.Socket[bytes], address: Address, deadline_s: float, timeout_s: float) -> int:
    """Returns the descriptor of the link once both ends have shaken hands."""
    link = -1
    while True:
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0 or not monitor.poll(max(1, int(remaining_s * 1000))):
            break
        event, value = read_event(monitor)
        if event == zmq.EVENT_CONNECTED:
            link = value
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return link
        elif event == _CLOSED and link < 0:
            raise ConnectError(str(address), "")
        elif event in _FAILED:
            raise ConnectError(str(address), _FAILED[event])
    if link < 0:
        problem = f"no answer within {timeout_s:g} s; is the host up, and does a firewall block it?"
    else:
        problem = f"connected, but nobody shook hands within {timeout_s:g} s; does it speak ZeroMQ?"
    raise ConnectError(str(address), problem)


def read_event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """The next event that a monitor has, and the value that comes with it (zmq_socket_monitor(3))."""
    event, _ = monitor.recv_multipart(zmq.NOBLOCK)
    return int.from_bytes(event[:2], "little"), int.from_bytes(event[2:6], "little", signed=True)


def end_monitor(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
    """Watches a socket no more."""
    socket.disable_monitor()
    monitor.close(0)
