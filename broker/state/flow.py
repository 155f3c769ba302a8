"""How much a tenant sends and holds, against its quotas: over them its publishers get no more credit.

What has come is counted as time passes, by what the connections have received, so that it costs a message nothing:

    allowance  +  rate * time (at most a second's)  -  bytes that have come    below 0 -> over

Between two looks, what credit was given for counts in its place. A publisher has credit for one window before it
notices, and a tenant may fall below by the windows of all its publishers. It stays over until the time has made up for
all of it, so the average holds. Credit is given per topic, so everything else goes on: what is read, replies,
heartbeats, control messages, which are counted but never wait.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from broker.ids import SessionId
from broker.security.quotas import UNBOUNDED, Quotas

if TYPE_CHECKING:
    from broker.state.records import SessionRecord
    from broker.state.topics import TopicRecord

log = logging.getLogger(__name__)

TOLD_INTERVAL_NS: Final = 10_000_000_000
"""Between two lines of the log about a tenant that is over its quotas: at its limit, it is so many times a second."""


class Flow:
    """One tenant's flow of bytes.

    Attributes:
        quotas: the tenant's.
        is_over: whether publishers get no more credit.
        blocking: topics whose publishers wait for that; as of a subscription.
    """

    def __init__(self, tenant: str = "", quotas: Quotas = UNBOUNDED) -> None:
        self.quotas = quotas
        self.is_over = False
        self._told_ns = -TOLD_INTERVAL_NS
        self.blocking: dict[TopicRecord, None] = {}
        self._tenant = tenant
        self._allowance = float(quotas.bytes_per_second_max or 0)
        self._looked_ns = 0
        self._received: dict[SessionId, int] = {}
        self._unaccounted = 0
        self._shared = 0
        self._granted = 0

    @property
    def is_bounded(self) -> bool:
        """Whether there is anything to look at."""
        return self.quotas.held_bytes_max is not None or self.quotas.bytes_per_second_max is not None

    def follow(self, quotas: Quotas) -> bool:
        """Other quotas hold from now on, with a whole allowance; says whether publishers may go on that had to wait."""
        before, self.is_over = self.is_over, False
        self.quotas = quotas
        self._allowance = float(quotas.bytes_per_second_max or 0)
        # What came before they held does not count.
        self._looked_ns = 0
        return before

    def ended(self, record: SessionRecord) -> None:
        """A session is over; what it has sent since the last look still counts."""
        self._unaccounted += record.session.received_bytes - self._received.pop(record.id, 0)

    def left(self, record: SessionRecord) -> None:
        """A session belongs to another tenant, which counts what it sends."""
        self._received.pop(record.id, None)

    def granted(self, size_bytes: int) -> None:
        """A publisher got credit again for what it has sent."""
        if self.quotas.bytes_per_second_max is not None:
            self._granted += size_bytes
            if self._granted > self._allowance:
                self.is_over = True

    def look(self, sessions: Iterable[SessionRecord], shared_bytes: int, held_bytes: int, now_ns: int) -> bool:
        """Time has passed.

        Args:
            sessions: of the tenant.
            shared_bytes: that have come in shared memory, ever.
            held_bytes: that wait for subscribers, or as jobs that are not done, at the moment.
            now_ns: the monotonic time.

        Returns:
            Whether publishers may go on that had to wait.
        """
        quotas = self.quotas
        before, self.is_over = self.is_over, False
        if quotas.bytes_per_second_max is not None:
            self._account(quotas.bytes_per_second_max, sessions, shared_bytes, now_ns)
            self.is_over = self._allowance < 0
        if quotas.held_bytes_max is not None and held_bytes > quotas.held_bytes_max:
            self.is_over = True
        if self.is_over and now_ns - self._told_ns > TOLD_INTERVAL_NS:
            self._told_ns = now_ns
            log.info(
                "tenant.over_quota tenant=%r allowance_bytes=%d held_bytes=%d",
                self._tenant, self._allowance, held_bytes,
            )  # fmt: skip
        return before and not self.is_over

    def _account(self, rate: int, sessions: Iterable[SessionRecord], shared_bytes: int, now_ns: int) -> None:
        came, self._unaccounted = self._unaccounted, 0
        for record in sessions:
            received = record.session.received_bytes
            came += received - self._received.get(record.id, 0)
            self._received[record.id] = received
        came += shared_bytes - self._shared
        self._shared = shared_bytes
        if self._looked_ns:
            passed_s = (now_ns - self._looked_ns) / 1e9
            self._allowance = min(float(rate), self._allowance + rate * passed_s) - came
        self._looked_ns = now_ns
        self._granted = 0

    def __repr__(self) -> str:
        return f"<Flow {self._tenant!r} over={self.is_over} allowance={self._allowance:.0f}>"
