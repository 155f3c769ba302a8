"""One line, from its beginning to its end; see broker/state/lines.py."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from broker.errors import LimitExceeded, ProtocolError
from broker.limits import CHUNK_BYTES, LINE_LASTING_MESSAGES
from broker.protocol.bodies import Attach, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.line import DATA_OFFSET, Drain, check_entry
from broker.protocol.places import packed_place, place_of
from broker.protocol.session import Phase
from broker.protocol.sharing import CommonMemory
from broker.state.announcing import announced
from broker.state.delivery import Subscription
from broker.state.line_leases import LineLeases
from broker.state.records import SessionRecord
from broker.state.sharing import Loan
from broker.topics.messages import Message
from broker.topics.policy import Overflow

if TYPE_CHECKING:
    from broker.state.lines import Lines
    from broker.state.topics import Publisher

log = logging.getLogger(__name__)

_PUBLISH, _DEFAULT = int(Kind.PUBLISH), int(Lane.DEFAULT)
_ALLOWED_FLAGS = int(Flag.BATCH | Flag.ACKNOWLEDGE | Flag.SHARED)
_SHARED = int(Flag.SHARED)
_BLOCK: Final = Overflow.BLOCK
_SHARED_COUNTS: Final = 15
"""Small messages to which one in shared memory is equal, beside itself, when it is asked whether a line has lasted."""
_UNSENT_MAX: Final = 64
"""Buffers of a session's next write, up to which more are put into it."""


class LineReader:
    """A session that reads a line.

    Attributes:
        session: which.
        subscriptions: for which it reads.
        place: memory in which it says how far it is.
        leases: what it has of the line in shared memory.
    """

    __slots__ = ("leases", "place", "session", "subscriptions")

    def __init__(
        self, session: SessionRecord, subscriptions: list[Subscription], place: CommonMemory, publisher: SessionRecord
    ) -> None:
        self.session = session
        self.subscriptions = subscriptions
        self.place = place
        self.leases = LineLeases(session, publisher, place)


class TopicLine:
    """A line of a topic.

    Attributes:
        number: by which frames name it.
        topic: whose messages it carries.
        publisher: who writes.
        readers: who read, in the order of their places.
        draining: whether what is published comes from it.
        asks: the flag that its messages may have because they are followed: of requests, or of last replies; or 0.
        arenas: in which messages may lie, as all readers have mapped them: the publisher's own numbers, by those by
            which readers know them.
        keeps: how many messages, and how many of their bytes, the topic keeps. Its publisher writes again where older
            ones lay that all readers have let go of, which the broker may not have drained by then.
        offered_ns: when the broker has first seen that its publisher has not begun it yet; 0 for not yet.
    """

    def __init__(
        self,
        lines: Lines,
        number: int,
        publisher: Publisher,
        ring: CommonMemory,
        readers: list[LineReader],
        asks: int,
        arenas: dict[int, int],
    ) -> None:
        self.number = number
        self.asks = asks
        self.arenas = arenas
        self.topic = publisher.topic
        self.publisher = publisher
        self.readers = readers
        self.ring = ring
        self.keeps = publisher.topic.ring.messages_max, publisher.topic.ring.bytes_max
        self.draining = False
        self.offered_ns = 0
        self._lines = lines
        self._messages = 0
        # No more than that fits before what was drained is said to be.
        self._data_bytes = ring.size_bytes - DATA_OFFSET
        self._fault: ProtocolError | None = None
        # How far the last of the readers was, and whether what was drained last lies in shared memory.
        self._least = 0
        self._lends = False
        # What was drained and some reader has not read yet, each with the position behind it.
        self._unread: deque[tuple[int, Message]] = deque()
        self._end = Drain(ring, ring.address, ring.size_bytes)
        for reader in readers:
            self._end.add(reader.place, reader.place.address)

    def drain(self) -> None:
        """Takes in what was written since the last time. The line ends if a reader has left it or has no credit."""
        if self.take_in() and (self._reader_left() or self._is_out_of_credit()):
            self.settle()

    def take_in(self) -> bool:
        """Takes in what was written since the last time, and what was let go of; says whether the line goes on."""
        if self.draining or self.topic.line is not self:
            return False
        self._take_in()
        if self._fault is not None:
            self.settle()
        return self._fault is None

    def _take_in(self) -> None:
        for reader in self.readers:
            reader.leases.look()
        self._take_all()
        self._forget_read()
        for reader in self.readers:
            reader.leases.collect()

    def _take_all(self) -> None:
        """Publishes what the line holds, up to what its publisher may not have written."""
        end, publisher = self._end, self.publisher
        session, publish = publisher.session, self._lines.publishing.publish
        before = end.position
        self.draining = True
        try:
            while self._fault is None:
                frame = Frame.__new__(Frame)
                if not end.take(frame):
                    break
                if end.position - before > self._data_bytes:
                    # Else one that writes on and on would keep the broker here.
                    raise ProtocolError(f"more than {self._data_bytes} bytes on a line since it was last drained")
                check_entry(frame)
                if (
                    frame.kind != _PUBLISH
                    or frame.number != publisher.number
                    or frame.lane != _DEFAULT
                    or (frame.flags & ~_ALLOWED_FLAGS and frame.flags != self.asks)
                    or (frame.sequence and not self.asks)
                ):
                    raise ProtocolError(f"{frame!r} with flags {frame.flags} in lane {frame.lane} on a line")
                if frame.flags & _SHARED:
                    self._find(frame)
                publish(session, frame)
        except ProtocolError as error:
            self._fault = error
        finally:
            self.draining = False
            if end.position != before:
                end.drained()

    def _find(self, frame: Frame) -> None:
        """A message in shared memory: names the place as its publisher does to the broker."""
        name, loan, offset = place_of(frame.payload)
        own = self.arenas.get(name)
        if own is None or self.publisher.session.shares is None:
            raise ProtocolError(f"{frame!r} on a line, in arena {name}, which not all of its readers have")
        frame.payload = packed_place(own, loan, offset)

    def passed(self, message: Message) -> None:
        """A message was drained, which the readers have from the line."""
        self._messages += message.count
        self._unread.append((self._end.position, message))
        self._lends = message.stream is not None
        if message.stream is not None:
            # It may have to be offered yet.
            message.holders += 1
            self._messages += _SHARED_COUNTS
            self._lend(message.stream.loan)
        for reader in self.readers:
            for subscription in reader.subscriptions:
                subscription.passed(message)

    def _lend(self, loan: object) -> None:
        """The readers have a message in shared memory, or are about to take it."""
        assert isinstance(loan, Loan)
        for reader in self.readers:
            reader.leases.hold(self._end.position, loan)

    def leases(self) -> list[LineLeases]:
        """What its readers have of it in shared memory."""
        return [reader.leases for reader in self.readers if len(reader.leases)]

    def _forget_read(self) -> None:
        """Forgets what all have read."""
        self._least = min([self._end.taken(place) for place in range(len(self.readers))])
        unread = self._unread
        while unread and unread[0][0] <= self._least:
            _forget(unread.popleft()[1])

    def _reader_left(self) -> bool:
        """Whether a reader did not want to read any more when it was looked, or has as much as it may have."""
        return self._least < 0 or any(reader.leases.full for reader in self.readers)

    def _is_out_of_credit(self) -> bool:
        """Whether what a reader may get is decided in its queue from here on."""
        for reader in self.readers:
            for subscription in reader.subscriptions:
                queue = subscription.queue
                # Of large messages the line holds what a reader does not take, and its publisher waits.
                waits = self._lends and queue.overflow is _BLOCK
                if not waits and (queue.credit_messages <= 0 or queue.credit_bytes <= 0):
                    return True
        return False

    def blockers(self) -> list[Subscription]:
        """The readers that hold its publisher back."""
        subscriptions = [subscription for reader in self.readers for subscription in reader.subscriptions]
        return [each for each in subscriptions if each.queue.overflow is _BLOCK and each.queue.credit_bytes <= 0]

    def begin(self) -> bool:
        """The publisher writes from here on, its next message first. Lets the readers read, if they still can; else the
        line ends, with what is on it; says whether it goes on."""
        topic, lines = self.topic, self._lines
        readers = lines.readers_of(self.publisher)
        same = [(reader.session, reader.subscriptions) for reader in self.readers]
        behind = any(not _is_caught_up(each) for reader in self.readers for each in reader.subscriptions)
        keeps = topic.ring.messages_max, topic.ring.bytes_max
        if self._end.closed or topic.line is not None or readers != same or behind or keeps != self.keeps:
            self.refuse()
            return False
        try:
            handles = [(self.ring.handle(read_only=True), reader.place.handle()) for reader in self.readers]
        except LimitExceeded as error:
            log.warning("line.refused topic=%r cause=%s", topic.name, error)
            self.refuse()
            return False
        topic.line = self
        for reader, (ring, place) in zip(self.readers, handles, strict=True):
            passage = reader.session.session.passage
            assert passage is not None
            passage.give(ring)
            passage.give(place)
            body = Attach(
                self.ring.identity, reader.place.identity, [int(each.number) for each in reader.subscriptions]
            )
            frame = Frame(
                Kind.ATTACH, number=announced(reader.session, topic.name, self.publisher.sender), target=self.number,
                total_bytes=self.ring.size_bytes, sequence=topic.ring.next_sequence, body=encode_body(body),
            )  # fmt: skip
            # In the lane of the messages that were sent before, and so behind them.
            lines.send(reader.session, frame)
        self._close_descriptors()
        return True

    def refuse(self) -> None:
        """Ends a line that nobody reads yet. What its publisher has written goes the broker's way."""
        self._end.close()
        self._close_descriptors()
        if self.topic.line is not None:
            self.topic.line.settle()
        self._take_all()
        self._blame()

    def drop(self) -> None:
        """Ends a line on which its publisher has said nothing that counts."""
        self._end.close()
        self._close_descriptors()

    def withdraw(self) -> bool:
        """Ends a line that its publisher has not begun in time; says whether it is over, as nothing is on it. What is
        on it belongs behind what the publisher has sent before, and comes with its DRAIN."""
        if self._end.close():
            return False
        self._close_descriptors()
        self._lines.send(self.publisher.session, Frame(Kind.LINE, Flag.LAST, Lane.CONTROL, stream=self.number))
        return True

    def settle(self) -> None:
        """Ends the line: all that was published on it is taken in, and what a reader has not read is offered to it."""
        topic = self.topic
        if topic.line is not self or self.draining:
            return
        self._end.close()
        self._take_in()
        topic.line = None
        for place, reader in enumerate(self.readers):
            position = self._end.eject(place)
            reader.leases.eject(position)
            if reader.session.session.phase is Phase.OPEN:
                self._take_over(reader, [message for behind, message in self._unread if behind > position])
                self._lines.send(reader.session, Frame(Kind.ATTACH, Flag.LAST, target=self.number))
        while self._unread:
            _forget(self._unread.popleft()[1])
        self._lines.ended(self, lasted=self._messages >= LINE_LASTING_MESSAGES)
        self._lines.send(self.publisher.session, Frame(Kind.LINE, Flag.LAST, Lane.CONTROL, stream=self.number))
        self._blame()

    def _take_over(self, reader: LineReader, messages: list[Message]) -> None:
        for subscription in reader.subscriptions:
            for message in messages:
                subscription.take_back(message)
        for message in messages:
            for subscription in reader.subscriptions:
                self._lines.offer(subscription, message)

    def _blame(self) -> None:
        """Ends the session of a publisher that has written what it may not."""
        if self._fault is not None:
            self._lines.fail(self.publisher.session, self._fault)

    def _close_descriptors(self) -> None:
        """Nobody is told of it any more."""
        self.ring.close_descriptor()
        for reader in self.readers:
            reader.place.close_descriptor()

    def __repr__(self) -> str:
        return f"<TopicLine {self.number} of {self.topic.name!r} to {len(self.readers)} readers>"


def _forget(message: Message) -> None:
    """All readers have a message, or were offered it."""
    if message.stream is not None:
        message.release()


def _is_caught_up(subscription: Subscription) -> bool:
    """Whether nothing waits for a subscription that a message on a line could overtake, and it has room."""
    queue, session = subscription.queue, subscription.session.session
    if queue.waiting_messages and len(session.unsent) < _UNSENT_MAX:
        # What has only just come goes into the next write itself, ahead of what is said of the line.
        session.unsent_bytes += session.outbox.take(CHUNK_BYTES, session.unsent)
    return (
        not queue.waiting_messages
        and not queue.gaps
        and not subscription.is_under_way
        and queue.credit_messages > queue.messages_max // 2
        and queue.credit_bytes > queue.bytes_max // 4
    )
