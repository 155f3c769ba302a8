"""How a client comes by its links: what its program asked of `connect`, and the tries after a link was lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from broker.errors import ConnectError, ConnectionClosed, PermissionDenied
from broker.limits import RECONNECT_DELAY_FIRST_S, RECONNECT_DELAY_MAX_S
from broker.protocol.bodies import Hello
from broker.protocol.session import Allocate
from broker.transport.addresses import Address
from clients.connection import environment, link
from clients.connection.checks import check_connect
from clients.connection.core import Core
from clients.connection.link import Link
from clients.connection.reconnected import Reconnected
from clients.connection.securing import Folder, secured

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dialling:
    """What a client dials, and for how long.

    Attributes:
        addresses: tried in turn.
        greeting: what it says; how many workers the broker has is written there when the first one answers.
        connect_timeout_s: for the first link, and each try after that.
        reconnect_timeout_s: how long it tries again after a link was lost; 0 never does.
        on_reconnect: told of each link after the first.
    """

    addresses: tuple[Address, ...]
    greeting: Hello
    connect_timeout_s: float
    reconnect_timeout_s: float
    on_reconnect: Callable[[Reconnected], None] | None

    def of_worker(self, worker: int, workers: int, name: str) -> Dialling:
        """The same for another one of a broker's workers, of which there are so many."""
        return replace(self, greeting=msgspec.structs.replace(self.greeting, name=name, worker=worker, workers=workers))

    def dial(self, timeout_s: float, allocate: Allocate) -> Link:
        """Opens a session; see `link.dial`."""
        return link.dial(self.addresses, self.greeting, timeout_s, allocate)


def asked(
    url: str | None,
    *,
    name: str,
    token: str | None,
    tls: Folder | None,
    tenant: str,
    connect_timeout_s: float,
    reconnect_timeout_s: float,
    on_reconnect: Callable[[Reconnected], None] | None,
    shared_memory: bool,
) -> Dialling:
    """What the arguments of `connect` come to, which documents them.

    Raises:
        InvalidValue: one of them cannot be; the text says which.
    """
    check_connect(url, name, connect_timeout_s, reconnect_timeout_s, on_reconnect, token, tls, tenant)
    addresses = secured(url or environment.broker_url(), tls)
    proof = environment.token() if token is None else token
    greeting = link.hello(name, proof, tenant, shared=shared_memory)
    return Dialling(addresses, greeting, connect_timeout_s, reconnect_timeout_s, on_reconnect)


class Retries:
    """The tries after a link was lost: until a broker lets the client in, or refuses it, or the time is over."""

    def __init__(self, dialling: Dialling) -> None:
        self._dialling = dialling
        self._deadline = time.monotonic() + dialling.reconnect_timeout_s
        self._delay_s = RECONNECT_DELAY_FIRST_S

    @property
    def timeout_s(self) -> float:
        """Of the next one."""
        return min(self._dialling.connect_timeout_s, max(0.1, self._deadline - time.monotonic()))

    def end(self, error: ConnectError | PermissionDenied) -> ConnectionClosed | None:
        """Why the one that has failed like this was the last one; None if it was not."""
        if time.monotonic() + self._delay_s <= self._deadline and not isinstance(error, PermissionDenied):
            return None
        return ConnectionClosed(f"gave up reconnecting after {self._dialling.reconnect_timeout_s:g} s: {error}")

    def pause_s(self) -> float:
        """How long to wait before the next one."""
        pause_s, self._delay_s = self._delay_s, min(self._delay_s * 2, RECONNECT_DELAY_MAX_S)
        return pause_s


def reopened(core: Core) -> Reconnected | None:
    """What the last link may have cost, now that there is another one."""
    told, core.lost = core.lost, None
    if told is not None:
        log.warning("connection.reopened name=%r lost_messages_max=%d", core.name, told.lost_messages_max)
    return told
