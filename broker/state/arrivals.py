"""Who is let in, before and when they say hello: a stranger can neither use up what others need nor keep them out.

A connection that has yet to say hello is half open. When there are too many of these the oldest one goes, not the
newest: a client says hello at once, and gets through among thousands of connections that say nothing.

Where thousands can come, a connection has no session while nothing whole has been said over it: it is a Stranger, of
whom only the number, the address and the time are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from broker.errors import BrokerError, LimitExceeded
from broker.ids import SessionId
from broker.limits import EXPIRED_AT_ONCE
from broker.protocol.codes import Code
from broker.protocol.handshake import too_late
from broker.protocol.session import Phase
from broker.state.records import SessionRecord


class Stranger(Protocol):
    """Somebody who has connected and has no session.

    Attributes:
        id: the number that their session will have.
        opened_ns: when they connected.
    """

    id: SessionId
    opened_ns: int

    @property
    def peer(self) -> str:
        """Who, fit for a log."""

    @property
    def address(self) -> str:
        """As `address_of` gives it."""

    def turn_away(self, why: BrokerError) -> None:
        """Tells them why they cannot stay, and ends their connection; `Arrivals.leave` is called for that."""


Newcomer = SessionRecord | Stranger
"""Whoever has yet to say hello."""


class Arrivals:
    """Connections that have not said hello, sessions that have, and how many each address has.

    Attributes:
        half_open: connections that have yet to say hello, the oldest first.
        opened: sessions that have.
    """

    def __init__(
        self,
        *,
        sessions_max: int,
        half_open_max: int,
        hello_timeout_s: float,
        connections_per_address_max: int,
        flush: Callable[[SessionRecord], None],
    ) -> None:
        """Args:
        sessions_max: that have said hello.
        half_open_max: connections that have not.
        hello_timeout_s: how long these have.
        connections_per_address_max: both kinds together, of one address.
        flush: called with a session that has something to send.
        """
        self.half_open: dict[SessionId, Newcomer] = {}
        self.opened: set[SessionId] = set()
        self._sessions_max = sessions_max
        self._half_open_max = half_open_max
        self._hello_timeout_ns = int(hello_timeout_s * 1e9)
        self._too_late = too_late(hello_timeout_s)
        advice = "say hello at once, or raise it in the broker's configuration"
        self._too_many = LimitExceeded("half_open_max", half_open_max + 1, half_open_max, advice)
        self._per_address_max = connections_per_address_max
        self._flush = flush
        self._by_address: Counter[str] = Counter()
        self._last_id = 0

    def number(self) -> SessionId:
        """A number that no other session has had."""
        self._last_id += 1
        return SessionId(self._last_id)

    def arrive(self, newcomer: Newcomer) -> None:
        """Somebody has connected: is refused, or may make the oldest one that is half open go.

        A stranger of whom more is known now arrives again, with their session, which takes their place.
        """
        if newcomer.id in self.half_open:
            self.half_open[newcomer.id] = newcomer
            return
        address = _address(newcomer)
        if address:
            self._by_address[address] += 1
            count = self._by_address[address]
            if count > self._per_address_max:
                advice = f"{address} has them; close some, or raise it in the broker's configuration"
                self.refuse(
                    newcomer, LimitExceeded("connections_per_address_max", count, self._per_address_max, advice)
                )
                return
        self.half_open[newcomer.id] = newcomer
        if len(self.half_open) > self._half_open_max:
            oldest = self.half_open[next(iter(self.half_open))]
            self.refuse(oldest, self._too_many)

    def open(self, record: SessionRecord) -> LimitExceeded | None:
        """A connection has said hello; returns why it cannot be a session, if it cannot."""
        self.half_open.pop(record.id, None)
        if len(self.opened) >= self._sessions_max:
            advice = "raise it in the broker's configuration"
            return LimitExceeded("sessions_max", len(self.opened) + 1, self._sessions_max, advice)
        self.opened.add(record.id)
        return None

    def tick(self, now_ns: int) -> bool:
        """Time passes: whose time for a hello is over is half open no more. They are in order of it.

        When thousands have come at once, their time is over at once too, and messages wait meanwhile: so it is a part
        of them. Returns whether it may not have been all; then call again soon.
        """
        for _ in range(EXPIRED_AT_ONCE):
            oldest = next(iter(self.half_open.values()), None)
            if oldest is None or now_ns - oldest.opened_ns <= self._hello_timeout_ns:
                return False
            del self.half_open[oldest.id]
            if isinstance(oldest, SessionRecord):
                oldest.session.tick(now_ns)
                self._flush(oldest)
            else:
                oldest.turn_away(self._too_late)
        return True

    def leave(self, newcomer: Newcomer) -> None:
        """A connection is over."""
        self.half_open.pop(newcomer.id, None)
        self.opened.discard(newcomer.id)
        address = _address(newcomer)
        if address:
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]

    def refuse(self, newcomer: Newcomer, why: LimitExceeded) -> None:
        """Tells a connection that has not said hello why it cannot stay."""
        self.half_open.pop(newcomer.id, None)
        if not isinstance(newcomer, SessionRecord):
            newcomer.turn_away(why)
        elif newcomer.session.phase is Phase.AWAIT_HELLO:
            newcomer.session.refuse(Code.LIMIT, str(why))
            self._flush(newcomer)

    def __repr__(self) -> str:
        return f"<Arrivals half_open={len(self.half_open)} opened={len(self.opened)}>"


def _address(newcomer: Newcomer) -> str:
    return address_of(newcomer.peer) if isinstance(newcomer, SessionRecord) else newcomer.address


def address_of(peer: str) -> str:
    """The host of a peer that has come over a network, without its port; empty for one of this host's own sockets."""
    scheme, separator, rest = peer.partition("://")
    return rest.rpartition(":")[0] if separator and not scheme.endswith(("unix", "ipc", "inproc")) else ""
