"""Connecting, and moving bytes between a session and its connection: the same for both kinds of client."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from broker.buffers import Buffer
from broker.clock import monotonic_ns
from broker.errors import BrokerError, ConnectError, ConnectionClosed, PermissionDenied
from broker.limits import HEARTBEAT_INTERVAL_S, HEARTBEAT_TIMEOUT_S, POLL_MS_MAX
from broker.protocol.bodies import Hello, Refusal, Welcome
from broker.protocol.codes import Code
from broker.protocol.frames import Frame
from broker.protocol.line import AVAILABLE, VERSION
from broker.protocol.receiver import Deliver, Received
from broker.protocol.session import Allocate, Phase, Session
from broker.topics.owners import HOME
from broker.transport import registry
from broker.transport.addresses import Address, for_worker
from broker.transport.base import Connection
from broker.wires import CallingWire, Wire
from clients.connection import choosing
from clients.connection.choosing import AUTO, FIRST, Candidate

log = logging.getLogger(__name__)

INTERRUPTED: Final = (
    "interrupted, by Ctrl-C as a rule, at a moment in which it is not known how much the link had taken"
)
"""A signal's exception comes between a system call and the note of its result. To send the same bytes again, or to miss
some, would be worse than a new connection."""


@dataclass(frozen=True, slots=True)
class Link:
    """An open session and its connection."""

    connection: Connection
    wire: Wire
    """The connection's."""
    session: Session
    welcome: Welcome
    early: Sequence[Received]
    """What came together with the Welcome."""
    local_host: str = ""
    """This end's own address on the network on which the broker was dialled."""
    candidates: Sequence[Candidate] = ()
    """Of a client that chose: the broker's addresses, and why it took none that is better."""


def hello(name: str, token: str, tenant: str, *, shared: bool) -> Hello:
    """What a client says about itself; `dial` is to find out how many workers the broker has.

    Args:
        name: what it is called.
        token: proves who it is.
        tenant: whose topics it sees.
        shared: whether it shares memory with a broker on this host, where the transport can pass it.
    """
    lines = VERSION if AVAILABLE else 0
    host, library = socket.gethostname(), "tensorbus-python/0.1"
    return Hello(name, token, tenant, library, os.getpid(), host, shared, lines=lines, worker=HOME)


def _unlinked(buffers: Sequence[Buffer]) -> int:
    raise ConnectionClosed("there is no connection")


UNLINKED: Final = CallingWire(_unlinked, _unlinked)
"""In place of a connection's, while there is none."""


def dial(addresses: Sequence[Address], greeting: Hello, timeout_s: float, allocate: Allocate) -> Link:
    """Opens a session at the first address that works.

    Args:
        addresses: tried in turn; all share the time-out.
        greeting: see `hello`; how many workers the broker has is written there, and holds for each later dial.
        timeout_s: for everything up to the broker's Welcome, in seconds.
        allocate: see Session.

    Raises:
        ConnectError: none works; the text has each one's reason.
        PermissionDenied: a broker does not let this client in.
    """
    deadline = time.monotonic() + timeout_s
    reasons = []
    for position, address in enumerate(addresses):
        share_s = max(0.05, (deadline - time.monotonic()) / (len(addresses) - position))
        try:
            opens = _open_best if address.scheme == AUTO else _open
            link = opens(address, greeting, share_s, allocate)
            _count_workers(link, address, greeting)
            return link
        except ConnectError as error:
            reasons.append(error.reason if len(addresses) == 1 else f"{address}: {error.reason}")
    raise ConnectError(", ".join(str(address) for address in addresses), "; ".join(reasons))


def _count_workers(link: Link, address: Address, greeting: Hello) -> None:
    """Learns how many workers a broker has, or that it has not as many as it had.

    Raises:
        ConnectError: it has not; the link is closed.
    """
    count = link.welcome.workers or 1
    if greeting.workers not in (0, count):
        link.connection.close()
        had = f"the broker there has {count} workers, and this client was told of {greeting.workers}"
        raise ConnectError(str(address), f"{had}: topics have other places now; close the client and connect anew")
    greeting.workers = count


def _open(address: Address, greeting: Hello, timeout_s: float, allocate: Allocate, *, follows: bool = True) -> Link:
    """Opens a session at one address.

    Args:
        address: of the broker.
        greeting: what to say.
        timeout_s: for everything, in seconds.
        allocate: see Session.
        follows: whether a broker on this host may name a nearer way.
    """
    deadline = time.monotonic() + timeout_s
    connection = registry.connect(for_worker(address, greeting.worker), timeout_s)
    wire = connection.wire
    local_host = connection.local_host
    passage = connection.passage if greeting.shared else None
    if passage is not None:
        passage.enabled = True
    local = follows and greeting.shared and passage is None and connection.same_host
    session = Session(
        hello=msgspec.structs.replace(greeting, shared=passage is not None, local=local),
        now_ns=time.monotonic_ns(),
        allocate=allocate,
        heartbeat_interval_s=HEARTBEAT_INTERVAL_S,
        heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
        passage=passage,
    )
    try:
        early: list[Received] = []
        while session.phase is Phase.AWAIT_HELLO:
            session.flush(wire)
            _wait_readable(connection, address, deadline, timeout_s)
            read(session, wire, lambda received, _: early.append(received))
        if session.phase is not Phase.OPEN:
            raise session.failure or ConnectionClosed("the broker closed the connection")
    except BrokerError as error:
        connection.close()
        if local and session.refusal is not None and session.refusal.code == Code.MOVED:
            nearer = _open_nearer(address, session.refusal, greeting, deadline, allocate)
            return replace(nearer, local_host=local_host)
        if isinstance(error, ConnectError):
            raise
        if isinstance(error, ConnectionClosed) and error.code == Code.DENIED:
            raise PermissionDenied(error.reason) from error
        reason = error.reason if isinstance(error, ConnectionClosed) else str(error)
        raise ConnectError(str(address), f"no session: {reason}") from error
    except BaseException:
        connection.close()
        raise
    welcome = early.pop(0)
    assert isinstance(welcome, Welcome)
    frames = [item for item in early if isinstance(item, Frame)]
    return Link(connection, wire, session, welcome, frames, local_host)


def _open_best(address: Address, greeting: Hello, timeout_s: float, allocate: Allocate) -> Link:
    """Opens a session at the best of the addresses that a broker offers to who dials it at `auto://`.

    Only the first one has to work: a better one that does not is left alone, with the reason.
    """
    deadline = time.monotonic() + timeout_s
    greeting = msgspec.structs.replace(greeting, choose=True)
    first = replace(address, scheme=FIRST)
    link = _open(first, greeting, timeout_s, allocate)
    reasons: dict[Address, str] = {}
    for candidate in candidates_of(link, link.welcome.offers, address.host):
        if not candidate.better or candidate.hindrance:
            continue
        try:
            found = _open(candidate.address, greeting, max(0.05, (deadline - time.monotonic()) / 2), allocate)
        except (ConnectError, PermissionDenied) as error:
            reasons[candidate.address] = error.reason if isinstance(error, ConnectError) else f"refused: {error}"
            continue
        if found.welcome.life == link.welcome.life:
            _leave(link)
            link = replace(found, local_host=link.local_host or found.local_host)
            break
        found.connection.close()
        reasons[candidate.address] = "another broker is there"
    told = candidates_of(link, link.welcome.offers, address.host)
    told = [replace(each, hindrance=reasons.get(each.address, each.hindrance)) for each in told]
    for each in told:
        if each.better:
            log.info("link.not_better broker=%s better=%s cause=%s", address, each.address, each.hindrance)
    return replace(link, candidates=tuple(told))


def candidates_of(link: Link, offered: Sequence[str], host: str) -> list[Candidate]:
    """The addresses of the broker at the other end of a link, as this end sees them; see choosing."""
    connection = link.connection
    scheme = connection.peer_address.partition("://")[0]
    same_host = scheme in ("unix", "inproc", "zmq+ipc") or connection.same_host or choosing.is_loopback(host)
    return choosing.candidates(offered, scheme, host=host, same_host=same_host, load=registry.transport_for)


def _leave(link: Link) -> None:
    """Ends a session for a better one."""
    link.session.close(Code.NORMAL, "the client has found a better address of this broker")
    with contextlib.suppress(ConnectionClosed):
        link.session.flush(link.wire)
    link.connection.close()


def _open_nearer(address: Address, refusal: Refusal, greeting: Hello, deadline: float, allocate: Allocate) -> Link:
    """Opens a session at the socket that a broker on this host has named, or after all at its first address."""
    try:
        if os.lstat(refusal.path).st_uid in (0, os.geteuid()):
            # Nobody else's socket gets to see the token.
            nearer = Address("unix", path=refusal.path)
            link = _open(nearer, greeting, max(0.05, (deadline - time.monotonic()) / 2), allocate)
            if link.welcome.life == refusal.life:
                return link
            link.connection.close()
    except (OSError, ValueError, ConnectError, PermissionDenied) as error:
        log.info("link.not_nearer broker=%s path=%s cause=%s", address, refusal.path, error)
    return _open(address, greeting, max(0.05, deadline - time.monotonic()), allocate, follows=False)


def _wait_readable(connection: Connection, address: Address, deadline: float, timeout_s: float) -> None:
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0 or not poller.poll(min(remaining_s * 1000, POLL_MS_MAX)):
        raise ConnectError(str(address), f"connected, but no tensorbus broker answered within {timeout_s:g} s")


def read(session: Session, wire: Wire, deliver: Deliver) -> int:
    """Reads once and delivers what is complete; returns the bytes that were there.

    Raises:
        ConnectionClosed: the connection is gone.
    """
    size = wire.receive_into(session.receive_buffers())
    if size:
        session.received(size, monotonic_ns(), deliver)
    return size
