"""What `tensorbus doctor` says of choices: which way each pair has got, and why not a better one.

Pairs are this command and the broker, for each of the broker's addresses; each client and the broker; and the ranks of
each group, among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Final

import msgspec

import clients
from broker import devices
from broker.cli.connect import ask, connect
from broker.cli.doctor_system import Finding, State
from broker.errors import BrokerError, PermissionDenied
from clients.connection.choosing import AUTO, Candidate, is_ranked
from clients.connection.views import Way, candidates

SESSIONS_SHOWN: Final = 64
"""Clients; who has more looks at `/api/v1/sessions`."""
GROUPS_SHOWN: Final = 64
_QUICKEST: Final = ("shm",)


class _Session(msgspec.Struct):
    name: str
    host: str
    process: int
    peer: str
    shared_memory: bool = False


class _Group(msgspec.Struct):
    name: str
    generation: int
    ranks: list[int]
    schedule: str
    problem: str = ""


def address_findings(bus: clients.Client, found: Way, listeners: Sequence[str], url: str) -> Iterator[Finding]:
    """For each of the broker's addresses, whether this command has it, and why not. Better ones are tried."""
    ordered = not url.startswith(f"{AUTO}://")
    for candidate in found.candidates or candidates(bus, listeners):
        yield address_finding(candidate, tried(candidate) if candidate.better else "", found.scheme, ordered=ordered)


def tried(candidate: Candidate) -> str:
    """Why a better address cannot be had; nothing if it can."""
    if candidate.hindrance:
        return candidate.hindrance
    try:
        with connect(str(candidate.address), "doctor"):
            return ""
    except BrokerError as error:
        return f"refused: {error}"


def address_finding(candidate: Candidate, hindrance: str, taken: str, *, ordered: bool) -> Finding:
    """Of one address.

    Args:
        candidate: the address.
        hindrance: of a better one, why it cannot be had.
        taken: the scheme that is in use.
        ordered: whether whoever dialled has named that scheme.
    """
    address, check = candidate.address, f"address {candidate.address}"
    if candidate.taken:
        return Finding(check, State.OK, "in use")
    if candidate.better and hindrance:
        return Finding(check, State.INFO, f"better than {taken}, but not to be had: {hindrance}")
    if candidate.better:
        words = f"better than {taken}, and works from here; {taken} was asked for by its name"
        return Finding(check, State.WARNING if ordered else State.INFO, words, f"connect to {address}")
    if not is_ranked(address.scheme) or not is_ranked(taken):
        return Finding(check, State.INFO, f"not chosen instead of {taken}: only who asks for {address.scheme} gets it")
    return Finding(check, State.INFO, f"not better than {taken}")


def session_findings(bus: clients.Client) -> Iterator[Finding]:
    """How each client reaches the broker."""
    try:
        sessions = [session for session, _ in ask(bus, "sessions", _Session) if session.name != bus.name]
    except PermissionDenied as error:
        yield Finding("client", State.INFO, f"not to be seen: {error}")
        return
    for session in sessions[:SESSIONS_SHOWN]:
        who = f"{session.name!r} ({session.host}, process {session.process})"
        yield Finding("client", State.INFO, f"{who}: {session_words(session.peer, shared=session.shared_memory)}")
    if len(sessions) > SESSIONS_SHOWN:
        yield Finding("client", State.INFO, f"and {len(sessions) - SESSIONS_SHOWN} more: see /api/v1/sessions")


def session_words(peer: str, *, shared: bool) -> str:
    """How a client reaches the broker, and why not better.

    Args:
        peer: the client's end, as the broker sees it.
        shared: whether memory is shared.
    """
    # As tcp://host:port, or unix:pid=17.
    scheme, _, place = peer.partition(":")
    if shared:
        return f"{scheme}, with shared memory"
    if scheme == "inproc":
        return "inproc, in the broker's process"
    if scheme == "unix":
        return "unix; no shared memory: the client or the broker wants none, or it cannot be passed or sealed"
    if scheme == "tls":
        return "tls; not unix with shared memory: who encrypts is not moved to another address"
    if scheme.startswith("zmq"):
        return f"{scheme}; not better: ZeroMQ was asked for by its name"
    if _is_loopback(place):
        return f"{scheme} on one host; not unix with shared memory: no such socket, not wanted, or another container"
    return f"{scheme}; not unix with shared memory: other host, or another container"


def _is_loopback(place: str) -> bool:
    try:
        return ip_address(place.removeprefix("//").rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False


def group_findings(bus: clients.Client) -> Iterator[Finding]:
    """How the ranks of each group reach one another."""
    try:
        groups = [group for group, _ in ask(bus, "groups", _Group)]
    except PermissionDenied as error:
        yield Finding("group", State.INFO, f"not to be seen: {error}")
        return
    for group in groups[:GROUPS_SHOWN]:
        words = f"{group.name!r}, {len(group.ranks)} ranks: {group.schedule}"
        quickest = group.schedule in _QUICKEST or not group.problem
        yield Finding("group", State.INFO, words if quickest else f"{words}; not better: {group.problem}")
    if len(groups) > GROUPS_SHOWN:
        yield Finding("group", State.INFO, f"and {len(groups) - GROUPS_SHOWN} more: see /api/v1/groups")


def device_findings() -> Iterator[Finding]:
    """Which devices there are here, and how their arrays travel."""
    found = devices.available()
    if not found:
        yield Finding("devices", State.INFO, f"none: {devices.problem()}")
        return
    words = ", ".join(map(str, found))
    yield Finding("devices", State.INFO, f"{words}: arrays go through pinned host memory, one copy in each direction")
