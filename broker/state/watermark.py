"""What the broker does when memory runs short: it pushes back, then takes nothing new, and at last lets go.

    memory in use, of what there is for the broker
    0 %                        75 %            85 %              95 %
    +--------------------------+---------------+-----------------+-----------+
    | NORMAL                   | PUSH_BACK     | REFUSE          | SHED      |
    +--------------------------+---------------+-----------------+-----------+
    PUSH_BACK   publishers get no more credit: what they have sent goes on, and readers make room. What is kept for
                replay makes some too, a quarter of it each second: what is new matters more
    REFUSE      no new session, subscription, member or declaration, and no message: errors name `memory_max_bytes`.
                Replies, control messages, shared memory and operations of groups go on
    SHED        each look: half of what is kept for replay goes, and the session for which most bytes wait is closed

A level ends 5 % below where it begins, so that it does not come and go. What a publisher has left of its credit at
75 % is what the other levels are for: many topics have many windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from broker.errors import LimitExceeded, ProtocolError
from broker.protocol.codes import Code
from broker.protocol.frames import Kind, Lane
from broker.state.records import SessionRecord
from broker.topics.policy import PRESSURE

if TYPE_CHECKING:
    from broker.state.tenants import Tenant

NAME: Final = "memory_max_bytes"
NEW_WORK: Final = frozenset(map(int, (Kind.SUBSCRIBE, Kind.JOIN, Kind.DECLARE)))
"""What is refused from REFUSE on, besides messages and sessions."""
SHED_BYTES_MIN: Final = 1 << 20
"""To close a session for which less waits would not help."""


class Level(IntEnum):
    """How short memory is."""

    NORMAL = 0
    PUSH_BACK = 1
    REFUSE = 2
    SHED = 3


BEGINS_PERCENT: Final = (0, 75, 85, 95)
HYSTERESIS_PERCENT: Final = 5
ADVICE: Final = (
    f"from {BEGINS_PERCENT[Level.REFUSE]} % on nothing new is taken, until it is below "
    f"{BEGINS_PERCENT[Level.REFUSE] - HYSTERESIS_PERCENT} % again: let readers catch up, keep less for replay, or give "
    "the broker more memory"
)


class Watermark:
    """How much memory the broker uses, and what follows from it.

    Attributes:
        level: what holds now.
        used_bytes: what the broker used at the last look.
        limit_bytes: what there was for it.
    """

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        """Args:
        tenants: all that are there.
        """
        self.level = Level.NORMAL
        self.used_bytes = self.limit_bytes = 0
        self._tenants = tenants

    def look(self, used_bytes: int, limit_bytes: int, sessions: Iterable[SessionRecord]) -> SessionRecord | None:
        """Takes note of how much memory is in use.

        Args:
            used_bytes: by the broker.
            limit_bytes: what it may use at most.
            sessions: of which one may have to go.

        Returns:
            A session that was closed to make room, and that is to be flushed.
        """
        self.used_bytes, self.limit_bytes = used_bytes, limit_bytes
        level = _level(self.level, used_bytes * 100 // max(1, limit_bytes))
        if level is not self.level:
            self._move(level)
        return self._shed(sessions) if level is Level.SHED else None

    def make_room(self) -> None:
        """Lets go of a part of what is kept for replay, oldest topics first and declared values last; call it about
        once a second while the level is not NORMAL."""
        for tenant in self._tenants.values():
            tenant.router.let_go(tenant.router.retained_bytes * 3 // 4)

    def refusal(self) -> LimitExceeded | None:
        """Why nothing new is taken, if that is so."""
        if self.level < Level.REFUSE:
            return None
        return LimitExceeded(NAME, self.used_bytes, self.limit_bytes, ADVICE)

    def _move(self, level: Level) -> None:
        before, self.level = self.level, level
        for tenant in self._tenants.values():
            self.follow(tenant)
            told = {
                "event": "memory",
                "level": level.name.lower(),
                "before": before.name.lower(),
                "used_bytes": self.used_bytes,
                "limit_bytes": self.limit_bytes,
            }
            tenant.announce(PRESSURE, told, lane=Lane.CONTROL)
            if level is Level.NORMAL:
                for topic in list(tenant.router.topics.values()):
                    if topic.held_back:
                        tenant.publishing.look_again(topic)

    def follow(self, tenant: Tenant) -> None:
        """A tenant is there, or another level: it gives credit, and takes messages, or does not."""
        # What is on lines has been read already, and cannot be refused; from here on there are none.
        tenant.lines.end_all()
        tenant.publishing.pushing_back = self.level >= Level.PUSH_BACK
        tenant.publishing.refusal = self.refusal()

    def _shed(self, sessions: Iterable[SessionRecord]) -> SessionRecord | None:
        for tenant in self._tenants.values():
            tenant.router.let_go(tenant.router.retained_bytes // 2)
        heaviest = max(sessions, key=waiting_bytes, default=None)
        if heaviest is None or waiting_bytes(heaviest) < SHED_BYTES_MIN:
            return None
        words = f"{waiting_bytes(heaviest)} bytes wait for this session and memory has run out ({self.refusal()})"
        heaviest.session.fail(ProtocolError(words, Code.LIMIT))
        return heaviest

    def __repr__(self) -> str:
        return f"<Watermark {self.level.name} used={self.used_bytes} of {self.limit_bytes}>"


def waiting_bytes(record: SessionRecord) -> int:
    """What the broker holds because a session has not read it yet."""
    queues = (subscription.queue.waiting_bytes for subscription in record.subscriptions.values())
    return record.session.outbox.queued_bytes + record.session.unsent_bytes + sum(queues)


def _level(before: Level, percent: int) -> Level:
    """The level at a percentage, coming from another one."""
    return max(
        level
        for level in Level
        if percent >= BEGINS_PERCENT[level] - (HYSTERESIS_PERCENT if 0 < level <= before else 0)
    )
