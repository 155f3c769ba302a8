"""What the broker remembers of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.ids import SessionId
from broker.protocol.session import Session
from broker.security.identity import ANYBODY, Identity
from broker.security.permissions import EVERYTHING, Rights

if TYPE_CHECKING:
    from broker.protocol.sharing import HasDescriptor
    from broker.state.delivery import Subscription
    from broker.state.replay import Seen
    from broker.state.sharing import Shares
    from broker.state.tenants import Tenant
    from broker.state.topics import Publisher


class Ready:
    """Sessions that have something to send or are over, each once, in the order in which they said so.

    Called with a session it takes note of it. A class, as broker/wires.py says.
    """

    __slots__ = ("records",)

    def __init__(self) -> None:
        self.records: list[SessionRecord] = []

    def add(self, record: SessionRecord) -> None:
        """Takes note of a session."""
        if not record.is_ready:
            record.is_ready = True
            self.records.append(record)

    def __call__(self, record: SessionRecord) -> None:
        self.add(record)

    def discard(self, record: SessionRecord) -> None:
        """A session is gone."""
        if record.is_ready:
            record.is_ready = False
            self.records.remove(record)

    def take(self) -> list[SessionRecord]:
        """All of them; from here on each may be noted again."""
        records, self.records = self.records, []
        for record in records:
            record.is_ready = False
        return records

    def __repr__(self) -> str:
        return f"<Ready {len(self.records)} sessions>"


class SessionRecord:
    """A client of the broker.

    Attributes:
        identity: who it has proven to be.
        rights: what it may do.
        tenant: whose topics and groups it sees.
        inbox: the topic of the replies to it.
        name: what others are told that the client is called (Identity.called); empty until its hello.
        publishers: the topics to which it publishes, by its own numbers.
        streams: its large messages that are arriving, by its own numbers.
        subscriptions: by its own numbers; 0 is its inbox.
        leaving: subscriptions that have ended in the middle of a large message, of which the end is not sent yet.
        resuming: what a subscription has received that is about to come back: its number, and sequences by topic.
        bell: the eventfd, with `bell_identity`, that wakes the client when there is something on a line; None when it
            reads none.
        renumbered: how often the numbers in `announced` have begun again.
        lines: the version of lines that it can write, 0 for none.
        shares: what shared memory it has lent and reads; None when it shares none.
        groups: names of the collective groups in which it is a member or waits to be one.
        is_ready: whether it is among those that have something to send.
        last_publisher: of `publishers`, by which its last message came.
    """

    __slots__ = (
        "announced",
        "bell",
        "bell_identity",
        "groups",
        "host",
        "id",
        "identity",
        "inbox",
        "is_ready",
        "last_publisher",
        "leaving",
        "lines",
        "name",
        "opened_ns",
        "peer",
        "process",
        "publishers",
        "renumbered",
        "resuming",
        "rights",
        "session",
        "shares",
        "streams",
        "subscriptions",
        "tenant",
    )

    def __init__(
        self,
        session_id: SessionId,
        session: Session,
        peer: str,
        now_ns: int,
        tenant: Tenant,
        identity: Identity = ANYBODY,
    ) -> None:
        self.id = session_id
        self.identity = identity
        self.rights: Rights = EVERYTHING
        self.tenant = tenant
        self.inbox = f"$inbox/{session_id}"
        self.session = session
        self.peer = peer
        self.opened_ns = now_ns
        self.name = ""
        self.host = ""
        self.process = 0
        self.is_ready = False
        self.publishers: dict[int, Publisher] = {}
        self.last_publisher: Publisher | None = None
        self.streams: dict[int, Publisher] = {}
        self.subscriptions: dict[int, Subscription] = {}
        self.leaving: list[Subscription] = []
        self.resuming: tuple[int, dict[str, Seen]] = (0, {})
        self.shares: Shares | None = None
        self.bell: HasDescriptor | None = None
        self.bell_identity = 0
        self.lines = 0
        self.groups: set[str] = set()
        self.announced: dict[tuple[str, str], int] = {}
        self.renumbered = 0

    def __repr__(self) -> str:
        return f"<SessionRecord {self.id} {self.name!r} {self.peer} {self.session.phase.value}>"
