"""How the kernel lets bytes go over a link, as its congestion control (docs/decisions/0030-the-pace-of-links.md)."""

from __future__ import annotations

import logging
import socket
from typing import Final

from broker.limits_links import LINK_USER_TIMEOUT_MS
from clients.connection import environment

log = logging.getLogger(__name__)

UNFIT: Final = "bbr"
"""It takes what a receiver reads who computes in between for what the wire carries, and then sends no faster."""
INSTEAD: Final = "cubic"
_NAME_BYTES: Final = 16


def set_pace(sock: socket.socket) -> None:
    """Makes a link of a connection; one within the host has nothing to choose."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LINK_USER_TIMEOUT_MS)
    set_congestion(sock, environment.link_congestion())


def set_congestion(sock: socket.socket, wanted: str) -> None:
    """Chooses a link's congestion control.

    Args:
        sock: the link; one that is not TCP stays as it is.
        wanted: the kernel's name of one. Empty leaves the kernel's choice, unless that is bbr: then it is cubic.

    What the kernel does not have, or does not let this process have, is said in the log, and its own choice stays.
    """
    try:
        present = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES).split(b"\0")[0].decode()
        name = wanted or (INSTEAD if present == UNFIT else present)
        if name != present:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except (OSError, UnicodeDecodeError) as error:
        log.log(
            logging.WARNING if wanted else logging.DEBUG, "link.congestion wanted=%s cause=%s", wanted or INSTEAD, error
        )
