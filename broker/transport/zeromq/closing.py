"""Sockets that were closed and whose peer has yet to say that it has read everything.

A link that is closed over bytes that nobody has read, such as a GRANT that comes just then, is reset by TCP, and what
the peer has not read is lost. So a socket stays open after END until the peer's END or RESET, which follow on ours, at
most LINGER_S. A thread that lives as long as there are such sockets looks after them.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import zmq

from broker.transport.zeromq.bounds import LINGER_S
from broker.transport.zeromq.messages import Kind

_STEP_MS: Final = 20
_LAST: Final = (bytes([Kind.END]), bytes([Kind.RESET]))

_lock = threading.Lock()
_lingering: Final[list[tuple[float, zmq.Socket[bytes]]]] = []
_thread: threading.Thread | None = None


def close_when_read(socket: zmq.Socket[bytes]) -> None:
    """Closes a DEALER that has sent END, soon; it belongs to nobody else from here on."""
    global _thread
    with _lock:
        _lingering.append((time.monotonic() + LINGER_S, socket))
        if _thread is None:
            _thread = threading.Thread(target=_look_after_them, name="tensorbus-zeromq-closing", daemon=True)
            try:
                _thread.start()
            except RuntimeError:
                # The interpreter is ending; `finish` looks after it.
                _thread = None


def finish() -> None:
    """At the process's end: waits until all are closed."""
    thread = _thread
    if thread is not None:
        thread.join(LINGER_S + 1.0)
    else:
        _look_after_them()


def forget() -> None:
    """In a forked child: the sockets are the parent's."""
    global _lock, _thread
    _lock = threading.Lock()
    _lingering.clear()
    _thread = None


def _look_after_them() -> None:
    global _thread
    while True:
        with _lock:
            _lingering[:] = [each for each in _lingering if not _is_over(*each)]
            if not _lingering:
                _thread = None
                return
            poller = zmq.Poller()
            for _, socket in _lingering:
                poller.register(socket, zmq.POLLIN)
        poller.poll(_STEP_MS)


def _is_over(deadline_s: float, socket: zmq.Socket[bytes]) -> bool:
    """Closes a socket that need not wait any longer; says whether it did."""
    answered = False
    while (events := int(socket.get(zmq.EVENTS))) & zmq.POLLIN:
        first, *_ = socket.recv_multipart(zmq.NOBLOCK)
        answered = answered or first[:1] in _LAST
    if not answered and events & zmq.POLLOUT and time.monotonic() < deadline_s:
        return False
    socket.close()
    return True
