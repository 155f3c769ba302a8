"""What the broker announces on `$sys/pressure`: who loses messages of which topic, and who holds its publishers back.

Losses are counted where they happen and told by `tick`, in one announcement for each subscription and topic:

    lost lost lost     lost          lost
    ----------------+-------------------------+---------> time
                  tick, dropped=3           tick, dropped=2

A publisher that is held back and let go between two ticks was `blocked`, and is `unblocked` at the first tick that
finds nobody held back since the one before: a topic that is held back again and again is announced once. What happens
to announcements themselves, and to all else below `$sys/`, is counted and never announced, so that no announcement
causes another one. A message that is not lost costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final

from broker.errors import InvalidValue, ProtocolError
from broker.limits import DROPPED_TOPICS_MAX, PRESSURE_ANNOUNCEMENTS_MAX, PRESSURE_INTERVAL_NS, PRESSURE_WAITING_MAX
from broker.protocol.bodies import decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Frame
from broker.protocol.pressure import Dropped, SubscriptionPressure
from broker.state.delivery import Subscription
from broker.state.records import SessionRecord
from broker.state.topics import Router, TopicRecord
from broker.state.works import Work
from broker.topics.names import check_topic, matches
from broker.topics.policy import Overflow

SYSTEM: Final = "$sys/"
_LOOKS_MAX: Final = PRESSURE_ANNOUNCEMENTS_MAX // 2
"""Of the announcements of one tick, those of who waits for whom: losses never crowd them out, nor they losses."""
Announcement = dict[str, str | int]
Blocker = Subscription | Work


class Pressure:
    """Losses and waits that are to be announced.

    Attributes:
        waits: times that a publisher was held back, ever.
    """

    def __init__(self, router: Router, announce: Callable[[list[Announcement]], None]) -> None:
        """Args:
        router: where the topics are.
        announce: publishes announcements.
        """
        self.waits = 0
        self._router = router
        self._announce = announce
        self._due_ns = 0
        self._lost: dict[tuple[Subscription, str], int] = {}
        self._unlisted = 0
        # Topics to be looked at, with those that have held back a publisher since the last look; and what was told.
        self._touched: dict[TopicRecord, dict[Blocker, None]] = {}
        self._blocked: dict[TopicRecord, dict[Blocker, None]] = {}

    # What happens.

    def lost(self, subscription: Subscription, topic: str, count: int) -> None:
        """A subscription has lost messages of a topic."""
        key = subscription, topic
        lost = self._lost
        if key in lost:
            lost[key] += count
        elif topic.startswith(SYSTEM):
            return
        elif len(lost) < PRESSURE_WAITING_MAX:
            lost[key] = count
        else:
            self._unlisted += count

    def dropped(self, record: SessionRecord, frame: Frame) -> None:
        """DROPPED: a client has dropped messages that it had received, by the policy of a subscription.

        Raises:
            ProtocolError: what it says cannot be.
        """
        body = decode_body(frame.body, Dropped)
        if len(body.topics) > DROPPED_TOPICS_MAX:
            raise ProtocolError(f"DROPPED of {len(body.topics)} topics; the limit is {DROPPED_TOPICS_MAX}")
        subscription = record.subscriptions.get(frame.number)
        # As with credit: one that was just ended is none of anybody's business.
        if subscription is None:
            return
        for topic, count in body.topics.items():
            _check_dropped(topic)
            if count < 1 or not frame.number or not matches(subscription.filter, topic):
                raise ProtocolError(f"DROPPED of {count} messages of a topic for subscription {frame.number}")
            # Nobody can drop what was not sent, and what somebody says of others' topics must have a bound.
            count = min(count, subscription.delivered - subscription.evicted)
            if count > 0:
                subscription.evicted += count
                self.lost(subscription, topic, count)

    def held_back(self, topic: TopicRecord, blockers: list[Blocker]) -> None:
        """A publisher of a topic gets no more credit because of these."""
        self.waits += 1
        self._touched.setdefault(topic, {}).update(dict.fromkeys(blockers))

    def look_again(self, topic: TopicRecord) -> None:
        """It may be that nobody is held back any more by somebody."""
        self._touched.setdefault(topic, {})

    # What is told.

    def tick(self, now_ns: int) -> None:
        """Time passes: announces what has happened; of too much a part, and in the last one how much more there is."""
        if now_ns < self._due_ns or not (self._lost or self._touched or self._unlisted):
            return
        self._due_ns = now_ns + PRESSURE_INTERVAL_NS
        told: list[Announcement] = []
        left = self._look(told)
        for key in list(islice(self._lost, PRESSURE_ANNOUNCEMENTS_MAX - len(told))):
            told.append(self._loss(*key, self._lost.pop(key)))
        left += len(self._lost)
        if told and left:
            told[-1]["more"] = left
        if told and self._unlisted:
            told[-1]["unlisted"], self._unlisted = self._unlisted, 0
        if told:
            self._announce(told)

    def _loss(self, subscription: Subscription, topic: str, count: int) -> Announcement:
        return _announcement("dropped", self._router.topics.get(topic), topic, subscription, count)

    def _look(self, told: list[Announcement]) -> int:
        """Adds who has begun or ceased to hold publishers back; returns how many topics were left for the next time."""
        topics = list(islice(self._touched, _LOOKS_MAX))
        left = len(self._touched) - len(topics)
        for topic in topics:
            room = _LOOKS_MAX - len(told)
            held, known = self._touched[topic], self._blocked.setdefault(topic, {})
            changes = [("blocked", blocker) for blocker in held if blocker not in known]
            changes += [
                ("unblocked", blocker) for blocker in known if blocker not in held and not holds_back(topic, blocker)
            ]
            for event, blocker in changes[:room]:
                told.append(_announcement(event, topic, topic.name, blocker, 0))
                if event == "blocked":
                    known[blocker] = None
                else:
                    del known[blocker]
            if len(changes) > room:
                left += 1
                continue
            del self._touched[topic]
            if held:
                # Those that were let go before this look are told of at the next one.
                self._touched[topic] = {}
            if not known:
                del self._blocked[topic]
        return left

    def __repr__(self) -> str:
        return f"<Pressure lost={len(self._lost)} touched={len(self._touched)} blocked={len(self._blocked)}>"


def _check_dropped(topic: str) -> None:
    try:
        check_topic(topic, reserved=True)
    except InvalidValue as error:
        raise ProtocolError(f"DROPPED of what is no topic: {error}", Code.INVALID) from error


def holds_back(topic: TopicRecord, blocker: Blocker) -> bool:
    """Whether publishers of a topic wait for a subscription or a queue group."""
    return bool(topic.held_back) and topic in blocker.blocking


def pressure_on(blocker: Blocker, *, holds_back: bool) -> SubscriptionPressure:
    """How a subscription, or a queue group with acknowledgement, fares."""
    if isinstance(blocker, Work):
        jobs = blocker.queue
        return SubscriptionPressure(
            filter=blocker.topic.name,
            queue_group=blocker.group,
            waiting_messages=jobs.waiting + jobs.delayed,
            waiting_bytes=jobs.held_bytes,
            unread_messages=jobs.held,
            holds_back=holds_back,
        )
    queue, session = blocker.queue, blocker.session
    # A reader with `latest` has what it has asked for, and has credit only while it asks.
    unread = queue.waiting_messages if queue.overflow is Overflow.LATEST else queue.unread_messages
    return SubscriptionPressure(
        session.name, session.id, blocker.number, blocker.filter, blocker.queue_group, queue.overflow.value,
        queue.waiting_messages, queue.waiting_bytes, unread, blocker.dropped, holds_back,
    )  # fmt: skip


def _announcement(event: str, record: TopicRecord | None, topic: str, blocker: Blocker, dropped: int) -> Announcement:
    pressure = pressure_on(blocker, holds_back=False)
    return {
        "event": event,
        "topic": topic,
        "subscriber": pressure.subscriber,
        "session": pressure.session,
        "subscription": pressure.subscription,
        "filter": pressure.filter,
        "queue_group": pressure.queue_group,
        "policy": pressure.policy,
        "dropped": dropped,
        "dropped_total": pressure.dropped_messages,
        "waiting_messages": pressure.waiting_messages,
        "waiting_bytes": pressure.waiting_bytes,
        "unread_messages": pressure.unread_messages,
        "blocked_publishers": 0 if record is None else len(record.held_back),
    }
