"""Where a client can be reached by other members of its groups, and which host it is on."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from broker.errors import InvalidValue
from broker.limits import LISTEN_BACKLOG

log = logging.getLogger(__name__)

_NEARBY: Final = b"\0tensorbus-link "
_VARIABLE: Final = "environment variable TENSORBUS_LINK_ADDRESS"
_PARTS_OF_A_HOST: Final = ("/proc/sys/kernel/random/boot_id", "/etc/machine-id")


def host_identity() -> str:
    """The same for all processes of one host; two containers on one machine have networks of their own and differ."""
    parts = [*_machine()]
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/net"))
    parts.append(socket.gethostname())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@cache
def _machine() -> Sequence[str]:
    """What its files say; none of them changes while a process runs."""
    parts = []
    for name in _PARTS_OF_A_HOST:
        with suppress(OSError):
            parts.append(Path(name).read_text(encoding="utf-8").strip())
    return parts


def read_link_address(text: str) -> tuple[str, Sequence[int]]:
    """Host and ports of $TENSORBUS_LINK_ADDRESS: `host`, `host:port`, `host:first-last` or `:first-last`.

    Returns:
        The host, empty when the one on the way to the broker is meant, and the ports to try in turn; 0 is any.

    Raises:
        InvalidValue: it is malformed.
    """
    host, colon, ports = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in host and not host.startswith("[")):
        host, ports = text, "0"
    host = host.removeprefix("[").removesuffix("]")
    first, _, last = ports.partition("-")
    try:
        anywhere = bool(host) and ip_address(host).is_unspecified
        found = range(int(first), int(last or first) + 1)
    except ValueError as error:
        problem = "must be an IP address in figures, a port or ports, such as 10.0.0.7:5000-5099"
        raise InvalidValue(_VARIABLE, text, problem) from error
    if anywhere:
        raise InvalidValue(_VARIABLE, text, "must be an address at which the other ranks find this one")
    if not found or not 0 <= found[0] <= found[-1] < 1 << 16:
        raise InvalidValue(_VARIABLE, text, "must have ports from 1 to 65535, the lower one first")
    return host, found


def name_nearby(address: str) -> bytes:
    """Where a process that listens at an address is found by those of its host, without a network.

    The name is of Linux's abstract ones, which belong to a network namespace, as addresses do, and leave no file.
    """
    return _NEARBY + address.encode()


def listen_nearby(address: str) -> socket.socket | None:
    """A socket that listens there besides; None when somebody has taken the name."""
    try:
        return _listening(socket.AF_UNIX, name_nearby(address))
    except OSError as error:
        log.warning("door.apart address=%s cause=%s: ranks of this host meet as others do", address, error)
        return None


def listen(host: str, ports: Sequence[int]) -> socket.socket | None:
    """A socket that listens at the first port that is free; None when there is none, with a line in the log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failure: OSError | None = None
    for port in ports:
        try:
            return _listening(family, (host, port))
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRINUSE:
                break
    log.warning("door.closed host=%s ports=%s cause=%s: links between hosts are not used", host, ports, failure)
    return None


def _listening(family: socket.AddressFamily, address: bytes | tuple[str, int]) -> socket.socket:
    """A socket that listens there.

    Raises:
        OSError: the address cannot be had, or this process may open no more files.
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.bind(address)
        sock.listen(LISTEN_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
