"""What the broker tells of itself over a client's connection, the same as over HTTP; and how the client reaches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from broker.errors import ConnectionClosed, ProtocolError
from broker.protocol.bodies import decode_body, encode_body
from broker.protocol.frames import Kind
from broker.protocol.pressure import Query, View
from clients.client import Client
from clients.connection.checks import text_bytes
from clients.connection.choosing import Candidate
from clients.connection.link import candidates_of
from clients.connection.operations import Deadline, Driver, answer, online
from clients.workers.client import everywhere

ITEMS_MAX: Final = 4096
"""Of one view: as many as there may be sessions. Of 100,000 topics nobody reads the list."""


def view(
    bus: Client, what: str, *, topic_filter: str = "#", items_max: int = ITEMS_MAX, timeout_s: float = 5.0
) -> list[dict[str, object]]:
    """What the broker knows at this moment, for people.

    Args:
        bus: connected to it.
        what: `server`, `sessions`, `topics` or `groups`.
        topic_filter: which topics.
        items_max: how many are wanted.
        timeout_s: how long the broker may take for all of it, in seconds.

    Returns:
        The one server, or sessions, topics or groups, oldest first, with the keys of `/api/v1/...`. Topics come without
        their policies; what would not fit a frame, such as a group with very many ranks, has shorter lists. Of a broker
        with several workers, what all of them have, one after the other, each with the key `worker`: a server for each,
        and a session of a client at each.

    Raises:
        InvalidValue: there is no such view, or a filter that cannot be.
        TimeoutError: no answer in time.
        ConnectionClosed: the connection ended.
    """
    text_bytes("view", what)
    items: list[dict[str, object]] = []
    workers = everywhere(bus)
    for worker, client in enumerate(workers):
        driver = client._driver
        found = driver.run(_view(driver, what, topic_filter, items_max - len(items), timeout_s))
        items += found if len(workers) == 1 else [{**item, "worker": worker} for item in found]
    return items


@dataclass(frozen=True, slots=True)
class Way:
    """How a client reaches its broker.

    Attributes:
        scheme: of the transport: tcp, unix, inproc, ...
        peer: the broker's end.
        same_host: whether the broker is known to be on this host.
        shared_memory: whether large messages go and come in shared memory.
        heartbeat_timeout_s: after so many seconds of silence the connection counts as lost.
        publish_window_bytes: of one topic that may be sent ahead of the broker's credit.
        candidates: of a client that dialled `auto://`, the broker's addresses, and why it took none that is better.
    """

    scheme: str
    peer: str
    same_host: bool
    shared_memory: bool
    heartbeat_timeout_s: float
    publish_window_bytes: int
    candidates: tuple[Candidate, ...] = ()


def way(bus: Client) -> Way:
    """How a client reaches its broker at this moment.

    Raises:
        ConnectionClosed: it does not.
    """
    link = bus._driver._link
    if link is None:
        raise ConnectionClosed("there is no connection to the broker at the moment")
    peer, welcome = link.connection.peer_address, link.welcome
    scheme = peer.partition("://")[0]
    return Way(
        scheme,
        peer,
        scheme in ("unix", "inproc") or link.connection.same_host,
        bus._core.arenas.enabled,
        welcome.heartbeat_timeout_ms / 1000,
        welcome.publish_window_bytes,
        tuple(link.candidates),
    )


def candidates(bus: Client, offered: Sequence[str]) -> list[Candidate]:
    """A broker's addresses as a client sees them from where it is; those that are better were not tried.

    Args:
        bus: connected to it.
        offered: where the broker listens, by its view of itself.

    Raises:
        ConnectionClosed: there is no connection at the moment.
    """
    found = way(bus)
    link = bus._driver._link
    assert link is not None
    _, _, place = found.peer.partition("://")
    host = place.rpartition(":")[0].strip("[]") if found.scheme in ("tcp", "tls", "zmq+tcp", "ucx") else ""
    return candidates_of(link, offered, host)


async def _view(
    driver: Driver, what: str, topic_filter: str, items_max: int, timeout_s: float
) -> list[dict[str, object]]:
    deadline = Deadline(timeout_s)
    items: list[dict[str, object]] = []
    while len(items) < items_max:
        await online(driver, deadline)
        query = Query(view=what, filter=topic_filter, after=len(items))
        pending = driver.core.ask(Kind.QUERY, f"the broker's {what}", body=encode_body(query))
        await answer(driver, pending, deadline)
        piece = decode_body(pending.body, View)
        items += [_decoded(item) for item in piece.items]
        if not piece.more or not piece.items:
            break
    return items[:items_max]


def _decoded(item: msgspec.Raw) -> dict[str, object]:
    try:
        return cast("dict[str, object]", msgspec.msgpack.decode(item, type=dict))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the broker's answer cannot be read: {error}") from error
