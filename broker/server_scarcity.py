"""What stands between the daemon and exhaustion: descriptors, memory, and a log that strangers would fill.

The system gives out the lowest descriptor that is free, so a high number says that so many are in use. Connections get
those below `DESCRIPTORS_RESERVED` from the end; the last ones are for what the sessions that are there need: shared
memory, boards, the HTTP interface.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable

from broker.errors import BrokerError, LimitExceeded
from broker.limits import DESCRIPTORS_RESERVED, MEMORY_LOOK_S, STRANGERS_LOGGED_MAX, STRANGERS_LOGGED_S
from broker.server_memory import MemoryGauge, give_back
from broker.state.arrivals import Newcomer
from broker.state.broker_state import BrokerState
from broker.state.records import SessionRecord
from broker.state.watermark import Level

log = logging.getLogger(__name__)


def connection_descriptors_max() -> int:
    """The highest number that the descriptor of a connection may have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return int(limit - min(DESCRIPTORS_RESERVED, limit // 8))


class Scarcity:
    """Looks after what is scarce in one server."""

    def __init__(self, state: BrokerState, memory_max_bytes: int) -> None:
        """Args:
        state: whose connections and memory.
        memory_max_bytes: what the process may use, if there is so much.
        """
        self._state = state
        self._memory_max_bytes = memory_max_bytes
        self._gauge: MemoryGauge | None = None
        self._limit_bytes = 0
        self._measure_ns = 0
        self._strangers = 0
        self._strangers_since_ns = 0
        self._scarce_ns = 0

    def watch_memory(self) -> None:
        """From here on memory is looked at: of a process that is a broker and nothing else."""
        self._gauge = MemoryGauge(self._memory_max_bytes)
        self._state.pool.look = self._look_between_ticks

    def accepted(self, newcomer: Newcomer, descriptor: int, now_ns: int) -> None:
        """A connection was accepted; it is refused if it would take a descriptor that others need."""
        descriptors_max = connection_descriptors_max()
        if descriptor < descriptors_max:
            return
        advice = "raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)"
        limit = LimitExceeded("descriptors", descriptor + 1, descriptors_max, advice)
        if now_ns - self._scarce_ns > STRANGERS_LOGGED_S * 1e9:
            self._scarce_ns = now_ns
            log.error("server.descriptors_scarce peer=%s cause=%s", newcomer.peer, limit)
        self._state.arrivals.refuse(newcomer, limit)

    def never_opened(
        self, who: Newcomer, received_bytes: int, cause: BrokerError | None, now_ns: int, *, denied: bool = False
    ) -> None:
        """A connection is over that has not said a hello that was accepted; the log has a bounded number of these.

        Args:
            who: had it; is asked for the peer only when there is a line about it.
            received_bytes: that they have said.
            cause: of the end.
            now_ns: the monotonic time.
            denied: it was somebody who was not let in, by a certificate or a token.
        """
        if now_ns - self._strangers_since_ns > STRANGERS_LOGGED_S * 1e9:
            self._tell_rest()
            self._strangers_since_ns = now_ns
        self._strangers += 1
        if self._strangers <= STRANGERS_LOGGED_MAX:
            # Who says nothing and goes looks whether somebody listens, as those do who watch a service.
            tell = log.warning if received_bytes or denied else log.info
            tell("server.stranger peer=%s received_bytes=%d cause=%s", who.peer, received_bytes, cause)

    def tick(self, now_ns: int, close: Callable[[SessionRecord], None]) -> None:
        """Time passes. `close` is called with a session that has to go at once, whatever it has yet to read."""
        if self._strangers and now_ns - self._strangers_since_ns > STRANGERS_LOGGED_S * 1e9:
            self._tell_rest()
        if self._gauge is not None:
            self._look_at_memory(self._gauge, now_ns, close)

    def _tell_rest(self) -> None:
        more, self._strangers = self._strangers - STRANGERS_LOGGED_MAX, 0
        if more > 0:
            log.warning("server.strangers more=%d", more)

    def _look_at_memory(self, gauge: MemoryGauge, now_ns: int, close: Callable[[SessionRecord], None]) -> None:
        watermark = self._state.watermark
        used_bytes = gauge.used_bytes()
        if now_ns - self._measure_ns > MEMORY_LOOK_S * 1e9:
            self._measure_ns = now_ns
            if watermark.level > Level.NORMAL:
                watermark.make_room()
                self._state.pool.let_go()
                give_back()
            try:
                self._limit_bytes = gauge.limit_bytes(used_bytes)
            except (OSError, ValueError) as error:
                # The last one holds.
                log.warning("server.memory_unknown cause=%s", error)
                self._limit_bytes = self._limit_bytes or self._memory_max_bytes
        before = watermark.level
        shed = watermark.look(used_bytes, self._limit_bytes, self._state.sessions.values())
        if watermark.level is not before:
            log.warning(
                "server.memory level=%s before=%s used_bytes=%d limit_bytes=%d",
                watermark.level.name, before.name, used_bytes, self._limit_bytes,
            )  # fmt: skip
        if shed is not None:
            log.error(
                "server.session_shed id=%d name=%r peer=%s cause=%s",
                shed.id, shed.name, shed.peer, shed.session.failure,
            )  # fmt: skip
            close(shed)

    def _look_between_ticks(self) -> None:
        """Much has come since the last look: the level follows, but no session is closed in the middle of a frame."""
        if self._gauge is not None and self._limit_bytes:
            self._state.watermark.look(self._gauge.used_bytes(), self._limit_bytes, ())

    def close(self) -> None:
        """Nothing is looked after any more."""
        if self._gauge is not None:
            self._gauge.close()
            self._gauge = None

    def __repr__(self) -> str:
        return f"<Scarcity descriptors_max={connection_descriptors_max()} {self._state.watermark!r}>"
