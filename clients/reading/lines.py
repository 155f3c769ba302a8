"""The lines that a client reads: messages that come from their publishers without passing the broker. Pure.

A line is read under the client's lock, by whoever is about to wait or has been woken. Before a thread sleeps it says so
on every line, and looks once more; a publisher rings the client's bell only if it has said so.

What is taken is bound by the subscription's queue, as what the broker sends is: a line holds what there is no room for,
and when that is long the broker takes it over. Who has taken an entry is decided by one exchange (line.h), so each is
handed out once, by the line or by the broker, and in the order in which it was written.
"""

from __future__ import annotations

import logging

from broker.errors import InvalidValue, LimitExceeded, ProtocolError
from broker.limits import BATCH_MESSAGES_MAX
from broker.protocol.bodies import Attach, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.line import PLACE_BYTES, TAKEN, Reader, Releases, check_entry
from broker.protocol.session import Session
from clients.reading.incoming import Incoming
from clients.reading.leases import HeldOnLine
from clients.reading.messages import Publication
from clients.reading.subscription_state import SubscriptionState

log = logging.getLogger(__name__)

_TAKEN = TAKEN
_PUBLISH, _DEFAULT = int(Kind.PUBLISH), int(Lane.DEFAULT)
_BATCH, _SHARED = int(Flag.BATCH), int(Flag.SHARED)
_ALLOWED = int(Flag.BATCH | Flag.ACKNOWLEDGE | Flag.REQUEST | Flag.LAST | Flag.SHARED)
_BATCH_MESSAGES_MAX = BATCH_MESSAGES_MAX
_ENTRIES_AT_ONCE = 1024
"""Of one line, before others that want the client's lock get it."""


class LineIn:
    """A line that is read.

    Attributes:
        number: by which the broker knows it.
        reader: this end of it.
        leases: its messages in shared memory that are used.
        publication: whose messages of which topic come on it.
        subscriptions: for which it is read.
        sequence: of the next message.
    """

    def __init__(
        self,
        number: int,
        reader: Reader,
        leases: HeldOnLine,
        publication: Publication,
        subscriptions: list[SubscriptionState],
        sequence: int,
    ) -> None:
        self.number = number
        self.reader = reader
        self.leases = leases
        self.publication = publication
        self.subscriptions = subscriptions
        self.sequence = sequence

    def has_room(self) -> bool:
        """Whether all subscriptions have room for another message."""
        # Typed, a loop is quicker than `all`.
        for subscription in self.subscriptions:  # noqa: SIM110
            if not subscription.has_room():
                return False
        return True


class Lines:
    """All lines that one client reads.

    Attributes:
        count: how many there are.
        incoming: where their messages go.
    """

    def __init__(self, incoming: Incoming) -> None:
        self.count = 0
        self.incoming = incoming
        self._lines: list[LineIn] = []

    def attach(self, session: Session, frame: Frame, now_ns: int) -> None:
        """ATTACH: a line is to be read, from its first message on; or one has ended."""
        if frame.flags & Flag.LAST:
            for line in self._lines:
                if line.number == frame.target:
                    for subscription in line.subscriptions:
                        subscription.lined(lined=False)
            self._lines = [line for line in self._lines if line.number != frame.target]
            self.count = len(self._lines)
            return
        body, passage = decode_body(frame.body, Attach), session.passage
        publication = self.incoming.publication(frame)
        found = [self.incoming.subscription(number) for number in body.subscriptions]
        subscriptions = [subscription for subscription in found if subscription is not None]
        try:
            if passage is None:
                raise InvalidValue("line", frame.target, "comes in a session that shares no memory")
            ring = passage.adopt(body.ring, frame.total_bytes, common=True, read_only=True)
            ring.close_descriptor()
            place = passage.adopt(body.place, PLACE_BYTES, common=True)
            place.close_descriptor()
            reader = Reader(ring, ring.address, ring.size_bytes)
            reader.add(place, place.address)
            leases = self.incoming.leases.line(Releases(place, place.address))
        except (InvalidValue, LimitExceeded) as error:
            log.warning("line.refused topic=%r cause=%s", publication.topic, error)
            _leave(session, frame.target)
            return
        line = LineIn(frame.target, reader, leases, publication, subscriptions, frame.sequence)
        for subscription in subscriptions:
            subscription.lined(lined=True)
        self._lines = [*self._lines, line]
        self.count = len(self._lines)
        self.read(now_ns)

    def read(self, now_ns: int) -> bool:
        """Hands out what there is and has room; says whether anything was.

        Args:
            now_ns: the monotonic time; 0 is not known.
        """
        took = False
        self.incoming.latencies.read_at(now_ns)
        for line in self._lines:
            for _ in range(_ENTRIES_AT_ONCE):
                if not line.has_room():
                    break
                frame = Frame.__new__(Frame)
                try:
                    if line.reader.take(frame) != _TAKEN:
                        break
                    self._hand_out(line, frame)
                except ProtocolError as error:
                    self._give_up(line, error)
                    break
                took = True
        return took

    def _hand_out(self, line: LineIn, frame: Frame) -> None:
        count = frame.count if frame.flags & _BATCH else 1
        if (
            frame.kind != _PUBLISH
            or frame.lane != _DEFAULT
            or frame.flags & ~_ALLOWED
            or not 0 < count <= _BATCH_MESSAGES_MAX
            or (frame.flags & _SHARED and frame.flags & _BATCH)
        ):
            raise ProtocolError(f"{frame!r} with flags {frame.flags} on a line")
        check_entry(frame)
        if frame.flags & _SHARED:
            frame.payload = self.incoming.leases.lined(line.leases, line.reader.position, frame)
        frame.sequence = line.sequence
        line.sequence += count
        for subscription in line.subscriptions:
            self.incoming.passed(subscription, frame, line.publication)

    def _give_up(self, line: LineIn, error: ProtocolError) -> None:
        """Its publisher is at fault, for whom this session need not end: the broker is asked to look at it."""
        log.error("line.unreadable topic=%r cause=%s", line.publication.topic, error)
        line.reader.leave()
        if self.incoming.session is not None:
            _leave(self.incoming.session, line.number)

    def has_more(self) -> bool:
        """Whether there is something to read."""
        # Typed, a loop is quicker than `any`.
        for line in self._lines:  # noqa: SIM110
            if line.reader.has_more() and line.has_room():
                return True
        return False

    def sleeps(self) -> bool:
        """A thread is about to sleep: says so on all lines. Returns False when there is something to read instead."""
        for line in self._lines:
            line.reader.sleeps(True)
        for line in self._lines:
            if line.reader.has_more() and line.has_room():
                self.wakes()
                return False
        return True

    def wakes(self) -> None:
        """It does not sleep any more."""
        for line in self._lines:
            line.reader.sleeps(False)

    def disconnected(self) -> None:
        """The session is over: what was written before can still be read, as far as there is room."""
        self.read(0)
        self.forget()

    def forget(self) -> None:
        """What comes on the lines is none of this process's business any more."""
        for line in self._lines:
            for subscription in line.subscriptions:
                subscription.lined(lined=False)
        self._lines = []
        self.count = 0


def _leave(session: Session, number: int) -> None:
    session.put(Frame(Kind.ATTACH, lane=Lane.CONTROL, target=number))
