"""Addresses at which nobody listens, whatever runs beside the tests.

A port that was free a moment ago may be a neighbour's now: the system gives out ports at any time. So one where nobody
shall listen stays bound, and ports that shall be free are those of an address that no other process uses. A broker that
is started again where it was listens at such an address too.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager


def own_host() -> str:
    """An address of loopback, which is 127.0.0.0/8, that no other process uses."""
    number = os.getpid()
    return f"127.{1 + (number >> 16) % 254}.{(number >> 8) % 256}.{number % 256}"


def free_ports(host: str) -> tuple[int, int]:
    """Two ports of a host of one's own, one after the other, at which nobody listens."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind((host, 0))
            port = int(first.getsockname()[1])
            try:
                second.bind((host, port + 1))
            except (OSError, OverflowError):
                continue
            return port, port + 1


@contextmanager
def refusing() -> Iterator[tuple[str, int]]:
    """A host and a port at which nobody listens, nor can while the context lasts: it is bound."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()
