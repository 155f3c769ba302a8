"""The system calls of the data path: one read, one write, one wait.

Compiled, they are called as they are: no tuple, list or exception is made on the way, and Python's lock is kept while
little is moved, because another thread that got it would not give it back for milliseconds. In plain Python they are
the standard library's.
"""

from __future__ import annotations

import array
import os
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from broker.buffers import Buffer
from broker.limits import POLL_MS_MAX

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

NOTHING: Final = -1
"""In place of a number of bytes: the call would have to wait."""
READABLE, WRITABLE = int(select.POLLIN), int(select.POLLOUT)
FIRST, SECOND = 1, 2
"""Which of two descriptors is ready, or their sum."""
DESCRIPTORS_AT_ONCE_MAX: Final = 16
"""Of one write; the kernel takes 253. While there are more, a write takes one byte along, so that none is overtaken."""
_RIGHTS_BYTES = socket.CMSG_SPACE(DESCRIPTORS_AT_ONCE_MAX * 4)
_NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)
"""A program may have restored SIGPIPE's default action; a peer that went away must not kill it."""


def read_once(sock: socket.socket, buffers: Sequence[memoryview], descriptors: list[int] | None = None) -> int:
    """Reads once from a socket that does not block.

    Args:
        sock: the socket.
        buffers: where the bytes belong, in turn.
        descriptors: gets the open files that came with the bytes; None takes none.

    Returns:
        The number of bytes, 0 at the end of the stream, or NOTHING.

    Raises:
        OSError: what the system says.
    """
    if cython.compiled and type(buffers) is list and len(buffers) <= 2:
        return _receive(sock.fileno(), buffers, descriptors)  # type: ignore[name-defined, no-any-return]  # noqa: F821
    try:
        if descriptors is None:
            return sock.recv_into(buffers[0]) if len(buffers) == 1 else sock.recvmsg_into(buffers)[0]
        size, ancillary, _, _ = sock.recvmsg_into(buffers, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return NOTHING
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            came = array.array("i")
            came.frombytes(data[: len(data) - len(data) % came.itemsize])
            descriptors.extend(came)
    return size


def write_once(sock: socket.socket, buffers: Sequence[Buffer]) -> int:
    """Writes once to a socket that does not block.

    Args:
        sock: the socket.
        buffers: the bytes, in turn.

    Returns:
        The number of bytes that were taken, or NOTHING.

    Raises:
        OSError: what the system says.
    """
    if cython.compiled and type(buffers) is list and len(buffers) <= 8:
        return _send(sock.fileno(), buffers)  # type: ignore[name-defined, no-any-return]  # noqa: F821
    try:
        if len(buffers) == 1:
            return sock.send(buffers[0], _NO_SIGNAL)
        return sock.sendmsg(buffers, (), _NO_SIGNAL)
    except BlockingIOError:
        return NOTHING


def ring(descriptor: int) -> None:
    """Makes an eventfd readable, if a write to it cannot block. One that is full or read by nobody does not matter."""
    if cython.compiled:
        _ring(descriptor)  # type: ignore[name-defined]  # noqa: F821
        return
    with suppress(OSError):
        if not os.get_blocking(descriptor):
            os.eventfd_write(descriptor, 1)


def wait_for_either(first: int, events: int, second: int, timeout_s: float | None) -> int:
    """Waits until one of two descriptors is ready, or failed, or the time is over; without Python's lock.

    Args:
        first: a descriptor.
        events: READABLE, WRITABLE, or both, for the first one.
        second: a descriptor, which is ready when it is readable.
        timeout_s: how long, in seconds, counted in whole milliseconds; None for ever.

    Returns:
        Which of them are ready: FIRST, SECOND, their sum, or 0.
    """
    if not cython.compiled:
        poller = select.poll()
        poller.register(first, events)
        poller.register(second, READABLE)
        timeout_ms = None if timeout_s is None else min(timeout_s * 1000, POLL_MS_MAX)
        ready = {descriptor for descriptor, _ in poller.poll(timeout_ms)}
        return FIRST * (first in ready) + SECOND * (second in ready)
    limit_s = -1.0 if timeout_s is None else timeout_s
    return _wait_for_either(first, events, second, limit_s)  # type: ignore[name-defined, no-any-return]  # noqa: F821
