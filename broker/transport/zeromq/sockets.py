"""How ZeroMQ's contexts and sockets are set up here."""

from __future__ import annotations

import os
import socket
import stat
import struct
from typing import Final

import numpy as np
import zmq

from broker.limits import HEARTBEAT_INTERVAL_S, HEARTBEAT_TIMEOUT_S, HELLO_TIMEOUT_S
from broker.transport.addresses import Address
from broker.transport.zeromq import closing
from broker.transport.zeromq.bounds import KEPT_BYTES, LINGER_S, MESSAGE_BYTES_MAX, SOCKETS_MAX, UNREAD_MESSAGES_MAX
from broker.transport.zeromq.messages import HEADER_BYTES

_MILLISECONDS: Final = 1000
LINGER_MS: Final = int(LINGER_S * _MILLISECONDS)
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""

_context: zmq.Context[zmq.Socket[bytes]] | None = None
_of_the_parent: Final[list[object]] = []
"""Contexts that a forked child must neither use nor end: it has none of their threads."""


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's ZeroMQ, whose thread moves the bytes of all its sockets; made for the first one."""
    global _context
    if _context is None:
        _keep_what_is_freed()
        _context = zmq.Context()
        _context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
    return _context


def _keep_what_is_freed() -> None:
    """Lets the allocator keep the memory of messages for the next ones, instead of pages that are fresh each time.

    glibc's gives blocks of 128 KiB and more back to the system at once, until one that is longer has been freed: then
    it keeps what is up to that long, and twice as much in all at the end of its heap (mallopt(3), M_MMAP_THRESHOLD). A
    block that nobody touches costs nothing. Others have their own ways, and take no harm.
    """
    np.empty(KEPT_BYTES, np.uint8)


def finish() -> None:
    """At the process's end: waits until what was put has left, at most LINGER_S, and ends ZeroMQ."""
    global _context
    closing.finish()
    ending, _context = _context, None
    if ending is not None:
        ending.destroy(linger=LINGER_MS)


def _forget_in_child() -> None:
    global _context
    closing.forget()
    if _context is not None:
        _of_the_parent.append(_context)
        _context = None


os.register_at_fork(after_in_child=_forget_in_child)


def make_socket(kind: int, address: Address) -> zmq.Socket[bytes]:
    """A socket with the settings that both ends have in common."""
    made = context().socket(kind)
    # Windows bound what waits; a mark would block or drop. The other one slows down a peer that ignores its window.
    made.set(zmq.SNDHWM, 0)
    made.set(zmq.RCVHWM, UNREAD_MESSAGES_MAX)
    made.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX + HEADER_BYTES)
    made.set(zmq.LINGER, LINGER_MS)
    made.set(zmq.HANDSHAKE_IVL, int(HELLO_TIMEOUT_S * _MILLISECONDS))
    made.set(zmq.HEARTBEAT_IVL, int(HEARTBEAT_INTERVAL_S * _MILLISECONDS))
    made.set(zmq.HEARTBEAT_TIMEOUT, int(HEARTBEAT_TIMEOUT_S * _MILLISECONDS))
    made.set(zmq.TCP_KEEPALIVE, 1)
    if ":" in address.host:
        made.set(zmq.IPV6, 1)
    return made


def endpoint_of(address: Address) -> str:
    """What ZeroMQ calls an address."""
    if address.path:
        return f"ipc://{address.path}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"tcp://{host}:{address.port}"


def end_of(descriptor: int, scheme: str, *, peer: bool) -> str:
    """The address of one end of a link, fit for a log.

    Args:
        descriptor: of the link's socket; ZeroMQ owns it, and may have closed it by now.
        scheme: of the connection.
        peer: the other end's, instead of this end's.
    """
    try:
        with _copy_of(descriptor) as link:
            if link.family == socket.AF_UNIX:
                credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                return process_end(scheme, _CREDENTIALS.unpack(credentials)[0] if peer else os.getpid())
            host, port = (link.getpeername() if peer else link.getsockname())[:2]
            return str(Address(scheme, host=host, port=port))
    except OSError:
        return f"{scheme}://gone"


def _copy_of(descriptor: int) -> socket.socket:
    """Raises:
    OSError: it is no socket; its number may have been given to another file by now.
    """
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def process_end(scheme: str, process_id: int) -> str:
    """The address of an end that has no path."""
    return f"{scheme}:pid={process_id}"


def identity_of(descriptor: int) -> int:
    """The file behind a descriptor, by which a number that was given to another file is told; 0 if it is no socket."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return 0
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else 0


def events_of(zeromq_socket: zmq.Socket[bytes]) -> int:
    """What a socket is ready for. Where it has no message, its descriptor tells of the next one from now on."""
    return int(zeromq_socket.get(zmq.EVENTS))


def has_input(zeromq_socket: zmq.Socket[bytes]) -> bool:
    """Whether a message is there; see `events_of`."""
    return bool(events_of(zeromq_socket) & zmq.POLLIN)
