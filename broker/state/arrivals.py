"""Who is let in, before and when they say hello: a stranger can neither use up what others need nor keep them out.

A connection that has yet to say hello is half open. When there are too many of these the oldest one goes, not the
newest: a client says hello at once, and gets through among thousands of connections that say nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from broker.errors import LimitExceeded
from broker.ids import SessionId
from broker.protocol.codes import Code
from broker.protocol.session import Phase
from broker.state.records import SessionRecord


class Arrivals:
    """Connections that have not said hello, sessions that have, and how many each address has.

    Attributes:
        half_open: connections that have yet to say hello, the oldest first.
        opened: sessions that have.
        pushed_out: half-open connections that had to make room, ever.
    """

    def __init__(
        self,
        *,
        sessions_max: int,
        half_open_max: int,
        connections_per_address_max: int,
        flush: Callable[[SessionRecord], None],
    ) -> None:
        """Args:
        sessions_max: that have said hello.
        half_open_max: connections that have not.
        connections_per_address_max: both kinds together, of one address.
        flush: called with a session that has something to send.
        """
        self.half_open: dict[SessionId, SessionRecord] = {}
        self.opened: set[SessionId] = set()
        self.pushed_out = 0
        self._sessions_max = sessions_max
        self._half_open_max = half_open_max
        self._per_address_max = connections_per_address_max
        self._flush = flush
        self._by_address: Counter[str] = Counter()

    def arrive(self, record: SessionRecord) -> None:
        """Somebody has connected: is refused, or may make the oldest one that is half open go."""
        address = address_of(record.peer)
        if address:
            self._by_address[address] += 1
            count = self._by_address[address]
            if count > self._per_address_max:
                advice = f"{address} has them; close some, or raise it in the broker's configuration"
                self.refuse(record, LimitExceeded("connections_per_address_max", count, self._per_address_max, advice))
                return
        self.half_open[record.id] = record
        if len(self.half_open) > self._half_open_max:
            oldest = self.half_open.pop(next(iter(self.half_open)))
            self.pushed_out += 1
            advice = "say hello at once, or raise it in the broker's configuration"
            self.refuse(oldest, LimitExceeded("half_open_max", self._half_open_max + 1, self._half_open_max, advice))

    def open(self, record: SessionRecord) -> LimitExceeded | None:
        """A connection has said hello; returns why it cannot be a session, if it cannot."""
        self.half_open.pop(record.id, None)
        if len(self.opened) >= self._sessions_max:
            advice = "raise it in the broker's configuration"
            return LimitExceeded("sessions_max", len(self.opened) + 1, self._sessions_max, advice)
        self.opened.add(record.id)
        return None

    def tick(self, now_ns: int) -> None:
        """Time passes: whose time for a hello is over is half open no more. They are in order of it."""
        while self.half_open:
            oldest = next(iter(self.half_open.values()))
            oldest.session.tick(now_ns)
            if oldest.session.phase is Phase.AWAIT_HELLO:
                return
            del self.half_open[oldest.id]

    def leave(self, record: SessionRecord) -> None:
        """A connection is over."""
        self.half_open.pop(record.id, None)
        self.opened.discard(record.id)
        address = address_of(record.peer)
        if address:
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]

    def refuse(self, record: SessionRecord, why: LimitExceeded) -> None:
        """Tells a connection that has not said hello why it cannot stay."""
        self.half_open.pop(record.id, None)
        if record.session.phase is Phase.AWAIT_HELLO:
            record.session.refuse(Code.LIMIT, str(why))
            self._flush(record)

    def __repr__(self) -> str:
        return f"<Arrivals half_open={len(self.half_open)} opened={len(self.opened)}>"


def address_of(peer: str) -> str:
    """The host of a peer that has come over a network, without its port; empty for one of this host's own sockets."""
    scheme, separator, rest = peer.partition("://")
    return rest.rpartition(":")[0] if separator and not scheme.endswith(("unix", "ipc", "inproc")) else ""
