"""Which of a broker's addresses is the best for a client, and why it does not take a better one. Pure.

A broker tells whoever asks where it listens. From best to worst:

    unix       on one host: messages may lie in memory that both share
    ucx        between hosts: buffers move by RDMA, and between devices
    tcp
    zmq+ipc    ZeroMQ, for programs that have nothing else
    zmq+tcp

Only who dials `auto://host:port` leaves what it has dialled: any other scheme is an order. `tls` is not in the list.
Who dials it wants what it gives, and is never moved to another one; and who did not is not moved there either, since
that takes certificates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final

from broker.errors import InvalidValue
from broker.transport.addresses import Address, parse

AUTO: Final = "auto"
FIRST: Final = "tcp"
"""What `auto` dials, to ask for the others."""
_ORDER: Final = ("unix", "ucx", "tcp", "zmq+ipc", "zmq+tcp")
_ON_ONE_HOST: Final = ("unix", "zmq+ipc", "inproc")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address at which a broker listens, as one client sees it.

    Attributes:
        address: as the client would dial it.
        taken: whether it is what the client has.
        better: whether it is better than that.
        hindrance: why the client cannot have it; empty when that is not known, or it can.
    """

    address: Address
    taken: bool
    better: bool
    hindrance: str = ""


def candidates(
    offered: Iterable[str],
    taken: str,
    *,
    host: str,
    same_host: bool,
    load: Callable[[str], object],
) -> list[Candidate]:
    """A broker's addresses, the best first; those of schemes that this client does not know are left out.

    Args:
        offered: as the broker has told them.
        taken: the scheme of the client's connection.
        host: under which the client has found the broker; empty where it needs none.
        same_host: whether broker and client are known to be on one host.
        load: loads the transport of a scheme; raises InvalidValue when it cannot be.
    """
    found = []
    for text in offered:
        try:
            address = _dialled(parse(text), host)
        except InvalidValue:
            continue
        better = is_better(address.scheme, taken)
        hindrance = _hindrance(address, same_host=same_host, load=load) if better else ""
        found.append(Candidate(address, address.scheme == taken, better, hindrance))
    return sorted(found, key=_place)


def is_ranked(scheme: str) -> bool:
    """Whether a client that chooses may come to a scheme, or leave it."""
    return scheme in _ORDER


def is_better(scheme: str, than: str) -> bool:
    """Whether a client that chooses takes one scheme rather than another one."""
    return is_ranked(scheme) and is_ranked(than) and _ORDER.index(scheme) < _ORDER.index(than)


def _place(candidate: Candidate) -> int:
    scheme = candidate.address.scheme
    return _ORDER.index(scheme) if is_ranked(scheme) else len(_ORDER)


def _dialled(address: Address, host: str) -> Address:
    """An address as the client dials it: one of all interfaces is at the host under which the broker was found."""
    return replace(address, host=host) if address.host and host and _unspecified(address.host) else address


def _unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a host is the one that asks."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hindrance(address: Address, *, same_host: bool, load: Callable[[str], object]) -> str:
    """What is known to be in the way without dialling."""
    scheme = address.scheme
    if not same_host and (scheme in _ON_ONE_HOST or is_loopback(address.host)):
        return "other host: the broker is not known to be on this one, or this is another container"
    try:
        load(scheme)
    except InvalidValue as error:
        return f"missing package: {error.problem}"
    if scheme == "unix":
        try:
            owner = os.lstat(address.path).st_uid
        except OSError as error:
            return f"cannot be reached: {error.strerror} (another container?)"
        if owner not in (0, os.geteuid()):
            # Nobody else's socket gets to see the token.
            return f"refused by this client: the socket belongs to user {owner}, who may not be the broker's"
    return ""
