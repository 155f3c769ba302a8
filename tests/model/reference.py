"""What docs/api.md promises about topics, as the simplest program that can say whether a promise was kept.

It knows the calls of the publishers and what reaches the broker in which order, and says what each subscription must
get, may get and must not get:

    called()  -->  arrived()  -->  [ log of the topic, ring ]  -->  Expected.got() for each subscription

It knows nothing of the broker's queues. Where a promise leaves a choice (a subscription that has run out of bytes may
drop one message or another) both are taken; when everybody has read everything (`check_settled`), what came and what
was said to be dropped must add up to all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from functools import cache

from tests.model.expected import Expected, GroupExpected, Member

Key = tuple[str, int]
"""A subscription: its client and its number."""


class Fate(Enum):
    """What has become of a message that was published."""

    CALLED = "called"
    OPEN = "open"
    COMPLETE = "complete"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class Sent:
    """One call of publish.

    Attributes:
        size_bytes: payload and body.
        sequence: in its topic, once it has reached the broker.
        dues: for whom it is, while they have not got it; of large messages only.
    """

    publisher: str
    topic: str
    lane: str
    payload: bytes
    headers: dict[str, str]
    size_bytes: int
    sequence: int = 0
    fate: Fate = Fate.CALLED
    dues: list[object] = field(default_factory=list)

    @property
    def aborted(self) -> bool:
        return self.fate is Fate.ABORTED

    def __repr__(self) -> str:
        what = f"{self.sequence} {self.lane} of {self.publisher}"
        return f"<{self.topic} {what}, {self.size_bytes} bytes, {self.fate.value}>"


@dataclass(slots=True, eq=False)
class Unit:
    """What reached the broker in one piece, and is kept in one piece: a message or a batch."""

    messages: list[Sent]
    size_bytes: int

    @property
    def sequence(self) -> int:
        return self.messages[0].sequence


class TopicLog:
    """One topic: all that was ever published to it, and what it keeps.

    A large message is kept from the moment at which it is complete; while it arrives, newcomers get it all the same.
    """

    def __init__(self, name: str, ring_messages: int, ring_bytes: int) -> None:
        self.name = name
        self.ring_messages = ring_messages
        self.ring_bytes = ring_bytes
        self.next_sequence = 1
        self.messages: dict[int, Sent] = {}
        self.ring: list[Unit] = []
        self.kept_messages = self.kept_bytes = 0
        self._arriving: list[Sent] = []

    def append(self, messages: list[Sent], size_bytes: int, *, complete: bool) -> None:
        """Messages have reached the broker together, or the first frame of a large one has."""
        for message in messages:
            message.sequence = self.next_sequence
            self.messages[self.next_sequence] = message
            self.next_sequence += 1
        if complete:
            self._keep(Unit(messages, size_bytes))
        elif size_bytes <= self.ring_bytes:
            arriving = self._arriving
            arriving += messages
            while len(arriving) > self.ring_messages or sum(sent.size_bytes for sent in arriving) > self.ring_bytes:
                arriving.pop(0)

    def complete(self, message: Sent) -> None:
        """The rest of a large message has come."""
        if message in self._arriving:
            self._arriving.remove(message)
            self._keep(Unit([message], message.size_bytes))
        else:
            # It is not kept, and the last value is never an older one than the topic's.
            while self.ring and self.ring[0].sequence <= message.sequence:
                self._let_go()

    def discard(self, message: Sent) -> None:
        """A message will never be complete."""
        if message in self._arriving:
            self._arriving.remove(message)

    def _keep(self, unit: Unit) -> None:
        ring = self.ring
        ring.append(unit)
        ring.sort(key=lambda unit: unit.sequence)
        self.kept_messages += len(unit.messages)
        self.kept_bytes += unit.size_bytes
        while ring and (
            self.kept_bytes > self.ring_bytes or (self.kept_messages > self.ring_messages and len(ring) > 1)
        ):
            self._let_go()

    def _let_go(self) -> None:
        oldest = self.ring.pop(0)
        self.kept_messages -= len(oldest.messages)
        self.kept_bytes -= oldest.size_bytes

    @property
    def oldest_sequence(self) -> int:
        return self.ring[0].sequence if self.ring else self.next_sequence

    def replayed(self, replay: str | int | None) -> list[Sent]:
        """What a new subscription gets of what is kept."""
        kept = [message for unit in self.ring for message in unit.messages]
        if replay is None:
            return []
        if replay == "latest":
            kept = kept[-1:]
            first = kept[0].sequence if kept else 0
        else:
            first = 0 if replay == "all" else int(replay)
        return sorted(
            (message for message in kept + self._arriving if message.sequence >= first),
            key=lambda message: message.sequence,
        )


class Reference:
    """All topics, subscriptions and calls."""

    def __init__(self, ring_messages: int, ring_bytes: int, window_messages: int) -> None:
        self.ring_messages = ring_messages
        self.ring_bytes = ring_bytes
        self.window_messages = window_messages
        self.topics: dict[str, TopicLog] = {}
        self.subscriptions: dict[Key, Expected | Member] = {}
        self.groups: dict[str, GroupExpected] = {}
        self._called: dict[tuple[str, str, str], deque[Sent]] = {}
        self._open: dict[tuple[str, int], Sent] = {}

    # Publishing.

    def topic(self, name: str) -> TopicLog:
        """The log of a topic."""
        log = self.topics.get(name)
        if log is None:
            log = self.topics[name] = TopicLog(name, self.ring_messages, self.ring_bytes)
        return log

    def called(self, message: Sent) -> None:
        """A publisher's call has returned, or goes on while its large message leaves."""
        self._called.setdefault((message.publisher, message.topic, message.lane), deque()).append(message)

    def arrived(
        self, publisher: str, topic: str, lane: str, count: int, size_bytes: int, stream: int | None
    ) -> list[Sent]:
        """The broker gets so many messages of a publisher: they must be the next ones that were called."""
        waiting = self._called.get((publisher, topic, lane), deque())
        assert len(waiting) >= count, f"{publisher} sends {count} to {topic!r}, and has called for {len(waiting)}"
        messages = [waiting.popleft() for _ in range(count)]
        self.topic(topic).append(messages, size_bytes, complete=stream is None)
        for message in messages:
            message.fate = Fate.COMPLETE if stream is None else Fate.OPEN
            if stream is not None:
                self._open[publisher, stream] = message
            for expected in self._matching(topic):
                expected.offer(message)
                expected.check_pushed(message, self.window_messages)
            for group in self.groups.values():
                if matches(group.filter, topic):
                    group.offer(message)
        return messages

    def complete(self, publisher: str, stream: int) -> None:
        """The last chunk of a large message has reached the broker."""
        message = self._open.pop((publisher, stream))
        message.fate = Fate.COMPLETE
        self.topic(message.topic).complete(message)

    def abort(self, publisher: str, stream: int) -> None:
        """A publisher has given a large message up."""
        self._abort(self._open.pop((publisher, stream)))

    def _abort(self, message: Sent) -> None:
        message.fate = Fate.ABORTED
        self.topic(message.topic).discard(message)
        for due in message.dues:
            due.aborted()  # type: ignore[attr-defined]

    def waits_to_leave(self) -> list[Sent]:
        """Calls that have not reached the broker."""
        return [message for waiting in self._called.values() for message in waiting]

    def forget_call(self, message: Sent) -> None:
        """A call has failed before anything of it had left."""
        self._called[message.publisher, message.topic, message.lane].remove(message)

    def open_messages(self) -> list[Sent]:
        """Large messages of which the rest has not come."""
        return list(self._open.values())

    # Subscribing.

    def _matching(self, topic: str) -> list[Expected]:
        return [
            expected
            for expected in self.subscriptions.values()
            if isinstance(expected, Expected) and matches(expected.filter, topic)
        ]

    def blockers(self, topic: str) -> list[Expected | Member]:
        """Subscriptions for which publishers of a topic may have to wait."""
        return [
            expected
            for expected in self.subscriptions.values()
            if expected.overflow == "block" and matches(expected.filter, topic)
        ]

    def subscribe(
        self, key: Key, topic_filter: str, overflow: str, bounds: tuple[int, int], group: str, replay: str | int | None
    ) -> None:
        """The broker gets a subscription."""
        if group:
            existing = self.groups.get(group)
            if existing is None:
                existing = self.groups[group] = GroupExpected(group, topic_filter)
            self.subscriptions[key] = existing.join(key, overflow, bounds)
            return
        expected = self.subscriptions[key] = Expected(key, topic_filter, overflow, bounds)
        kept = [
            message
            for topic in self.topics.values()
            if matches(topic_filter, topic.name)
            for message in topic.replayed(replay)
        ]
        expected.replay(kept)

    def end(self, key: Key, delivered: int, dropped: int) -> None:
        """The broker gets the end of a subscription, or of its client.

        Args:
            key: the subscription.
            delivered: messages that were handed to its session, of which the application may not have got all.
            dropped: messages that were dropped for it.
        """
        expected = self.subscriptions.pop(key, None)
        if isinstance(expected, Member):
            group = expected.group
            group.leave(expected, delivered, dropped)
            if not group.members:
                del self.groups[group.name]

    def gone(self, client: str) -> None:
        """A client is dead: what it had not sent will never come."""
        for calls in [calls for calls in self._called if calls[0] == client]:
            del self._called[calls]
        for stream in [stream for stream in self._open if stream[0] == client]:
            self._abort(self._open.pop(stream))


@cache
def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter matches a topic, by the words of docs/wire.md section 4."""
    return _matches(topic_filter.split("/"), topic.split("/"))


def _matches(wanted: list[str], levels: list[str]) -> bool:
    if not wanted:
        return not levels
    if wanted[0] == "#":
        return True
    return bool(levels) and wanted[0] in ("+", levels[0]) and _matches(wanted[1:], levels[1:])
