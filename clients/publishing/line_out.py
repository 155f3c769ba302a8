"""A topic's line, as its publisher has it: messages are written where the readers of the topic read them. Pure but for
the bells that it rings.

The broker offers a line and drains it; see broker/state/lines.py. Whatever does not fit on it, or cannot travel on it,
goes by the socket, and with that the line is over: the broker takes in what is on it first, so nothing is overtaken.

    blocks of a topic's messages, oldest first         | used again when
    +------+------+------+------+------+------+------+ |   all readers have said in their places that they have let go,
    | free | read | free | read | kept | kept | kept | |   and the topic keeps so many newer messages that it has this
    +------+------+------+------+------+------+------+ |   one no more as soon as the broker has drained those

So a publisher need not wait for the broker to have memory back. The broker hears of all that too, and tells: what is
not seen here, because a reader has said too much at a time, comes back with that.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final
from weakref import WeakValueDictionary, ref

from broker.errors import InvalidValue, LimitExceeded
from broker.limits import LINE_DATA_BYTES, SHARED_AHEAD_BYTES
from broker.protocol.bodies import Line, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.line import PLACE_BYTES, READERS_MAX, RELEASES, VERSION, Writer
from broker.protocol.session import Session
from broker.protocol.sharing import HasDescriptor, Passage
from broker.transport.calls import ring

log = logging.getLogger(__name__)

_HALF_BYTES: Final = LINE_DATA_BYTES // 2
_DEFAULT: Final = int(Lane.DEFAULT)
_MAY_HAVE: Final = int(Flag.SHARED | Flag.ACKNOWLEDGE)
_GIVEN_BACK_BYTES: Final = SHARED_AHEAD_BYTES // 2
_UNCOLLECTED: Final = RELEASES // 2
_KNOWN_MAX: Final = 4 * RELEASES
"""Messages of a line whose memory may come back without the broker; of older ones it is left to the broker."""


class _Lent:
    """A message in shared memory that was written to a line.

    Attributes:
        loan: its number.
        size_bytes: its length.
        readers: who may still read it, a bit for each.
        kept: whether the topic keeps it.
    """

    __slots__ = ("kept", "loan", "readers", "size_bytes")

    loan: int
    size_bytes: int
    readers: int
    kept: bool


class LineOut:
    """A line to which messages are written.

    Attributes:
        number: by which the broker knows it.
        asks: the flag of requests or of last replies, if such can travel on it; else 0.
        arenas: in which messages may lie, by the numbers by which others know them.
        shared_bytes_max: how long such a message may be.
        keeps_messages: how many messages the topic keeps; -1 when only the broker gives memory back.
        keeps_bytes: and how many bytes.
    """

    __slots__ = (
        "__weakref__", "_back", "_bells", "_kept", "_kept_bytes", "_known", "_told", "_writer", "arenas", "asks",
        "keeps_bytes", "keeps_messages", "number", "shared_bytes_max",
    )  # fmt: skip

    def __init__(self, number: int, writer: Writer, bells: list[HasDescriptor], asks: int) -> None:
        self.number = number
        self.asks = asks
        self.arenas: frozenset[int] = frozenset()
        self.shared_bytes_max = 0
        self.keeps_messages = self.keeps_bytes = -1
        # Messages in shared memory by the positions behind them, and those that the topic keeps, oldest first.
        self._known: dict[int, _Lent] = {}
        self._kept: deque[_Lent] = deque()
        self._kept_bytes = 0
        self._back: list[int] = []
        self._writer = writer
        self._bells = bells
        # The broker has been told of what is before it, and may not have looked yet.
        self._told = 0

    def write(self, header: bytes, body: bytes, payload: bytes, shared_bytes: int = 0) -> bool:
        """Publishes a message, or the place of so many bytes, and wakes its readers; says whether it has, else the line
        is over."""
        sleepers = self._writer.write(header, body, payload)
        if sleepers < 0:
            return False
        if shared_bytes and self.keeps_messages >= 0:
            self._lend(payload, shared_bytes)
        if sleepers:
            self._wake(sleepers)
        return True

    def _wake(self, sleepers: int) -> None:
        reader = 0
        while sleepers:
            if sleepers & 1:
                ring(self._bells[reader].descriptor)
            sleepers >>= 1
            reader += 1

    def _lend(self, place: bytes, size_bytes: int) -> None:
        """A message in shared memory was written: older ones are kept no more."""
        known, kept = self._known, self._kept
        # The loan of a place (broker/protocol/places.py), by its bytes: nothing is made for it.
        loan = place[4] | place[5] << 8 | place[6] << 16 | place[7] << 24
        lent = _Lent.__new__(_Lent)
        lent.loan, lent.size_bytes, lent.readers, lent.kept = loan, size_bytes, (1 << self._writer.readers) - 1, True
        known[self._writer.position] = lent
        if len(known) > _KNOWN_MAX:
            del known[next(iter(known))]
        kept.append(lent)
        self._kept_bytes += size_bytes
        # The newest one stays, whatever the topic keeps.
        while len(kept) > 1 and (len(kept) > self.keeps_messages or self._kept_bytes > self.keeps_bytes):
            oldest = kept.popleft()
            self._kept_bytes -= oldest.size_bytes
            oldest.kept = False
            if not oldest.readers:
                self._back.append(oldest.loan)

    def take_back(self) -> list[int]:
        """The loans of messages that nobody needs any more, of which this has not told yet."""
        writer, known = self._writer, self._known
        if known:
            for reader in range(writer.readers):
                # Not more than were written: a place is its reader's to write to.
                for _ in range(len(known)):
                    position = writer.let_go(reader)
                    if not position:
                        break
                    lent = known.get(position)
                    if lent is not None:
                        lent.readers &= ~(1 << reader)
                        if not lent.readers:
                            del known[position]
                            if not lent.kept:
                                self._back.append(lent.loan)
        back, self._back = self._back, []
        return back

    def carries(self, frame: Frame, name: int) -> bool:
        """Whether a message in shared memory can travel on it.

        Args:
            frame: with its place.
            name: by which number others know its arena.
        """
        return (
            name in self.arenas
            and frame.total_bytes <= self.shared_bytes_max
            and frame.lane == _DEFAULT
            and not frame.count
            and not frame.sequence
            and not frame.flags & ~_MAY_HAVE
        )

    def gives_back(self, size_bytes: int) -> bool:
        """Whether readers have let go of so much memory that the broker is to be told.

        Args:
            size_bytes: of each message there.
        """
        collectable = self._writer.collectable()
        if self.keeps_messages >= 0:
            # It has that back already, and the readers need only have room to say more.
            return collectable >= _UNCOLLECTED
        return collectable * size_bytes >= _GIVEN_BACK_BYTES

    def tells(self, soon: bool, low: bool) -> bool:
        """Whether the broker is to be told that there is something on the line; then it counts as told.

        Args:
            soon: whether its answer is waited for.
            low: whether credit or memory soon is.
        """
        if not soon:
            undrained_bytes = self._writer.undrained_bytes
            if undrained_bytes < _HALF_BYTES and not (low and undrained_bytes):
                return False
            if self._told > self._writer.position - undrained_bytes:
                # It has not come to what it was told of, and will look at all there is then.
                return False
        self._told = self._writer.position
        return True


class LinesOut:
    """What the publisher's lines share: the bells of those who read them.

    Attributes:
        lends: whether some memory may have to be given back on a line, in this session.
        takes_back: whether some of that may be without the broker.
        awaits: whether readers had some of that when it was taken back last.
    """

    def __init__(self) -> None:
        self.lends = False
        self.takes_back = self.awaits = False
        self._taking: list[ref[LineOut]] = []
        self._bells: WeakValueDictionary[int, HasDescriptor] = WeakValueDictionary()
        self._lines: WeakValueDictionary[int, LineOut] = WeakValueDictionary()

    def accept(self, session: Session, frame: Frame, topic: str) -> LineOut | None:
        """LINE: the broker offers one for a topic. None when it cannot be used, of which the broker is told."""
        line, passage = None, session.passage
        if passage is not None and frame.count == VERSION:
            try:
                line = self._line(passage, frame, decode_body(frame.body, Line), topic)
            except (InvalidValue, LimitExceeded) as error:
                log.warning("line.refused cause=%s", error)
        if line is None:
            decline(session, frame.stream)
        return line

    def mapped(self, frame: Frame) -> None:
        """MAPPED that names a line: its readers have an arena by now."""
        line = self._lines.get(frame.stream)
        if line is not None:
            line.arenas |= {frame.target}
            self.lends = True

    def take_back(self) -> list[int]:
        """The loans of messages on lines that nobody needs any more, of which this has not told yet."""
        found: list[int] = []
        ended = awaits = False
        for reference in self._taking:
            line = reference()
            if line is None:
                ended = True
            else:
                found += line.take_back()
                awaits = awaits or len(line._known) > 0
        self.awaits = awaits
        if ended:
            self._taking = [reference for reference in self._taking if reference() is not None]
            self.takes_back = bool(self._taking)
        return found

    def wait_for_memory(self, session: Session | None) -> None:
        """Tells the broker that this client waits for readers to let go of what they have from its lines."""
        if self.lends and session is not None:
            session.put(Frame(Kind.DRAIN, lane=Lane.CONTROL))

    def _line(self, passage: Passage, frame: Frame, told: Line, topic: str) -> LineOut | None:
        if not 0 < len(told.places) <= READERS_MAX or len(told.bells) != len(told.places):
            raise InvalidValue("readers of a line", len(told.places), f"must be from 1 to {READERS_MAX}")
        ring_memory = passage.adopt(frame.sequence, frame.total_bytes, common=True)
        ring_memory.close_descriptor()
        writer = Writer(ring_memory, ring_memory.address, ring_memory.size_bytes)
        for identity in told.places:
            place = passage.adopt(identity, PLACE_BYTES, common=True)
            place.close_descriptor()
            writer.add(place, place.address)
        bells = [self._bell(passage, identity) for identity in told.bells]
        found = [bell for bell in bells if bell is not None]
        asks = (Flag.LAST if topic.startswith("$inbox/") else Flag.REQUEST) if frame.flags & Flag.REQUEST else 0
        if len(found) != len(bells):
            return None
        line = self._lines[frame.stream] = LineOut(frame.stream, writer, found, asks)
        line.arenas, line.shared_bytes_max = frozenset(told.arenas), told.shared_bytes_max
        line.keeps_messages, line.keeps_bytes = told.keeps_messages, told.keeps_bytes
        self.lends = self.lends or bool(told.arenas)
        if told.keeps_messages >= 0:
            self.takes_back = True
            # A topic may have one line after the other, and nobody who ever takes something back.
            self._taking = [reference for reference in self._taking if reference() is not None]
            self._taking.append(ref(line))
        return line

    def _bell(self, passage: Passage, identity: int) -> HasDescriptor | None:
        arrived, known = passage.take(identity), self._bells.get(identity)
        if known is None and arrived is not None:
            self._bells[identity] = known = arrived
        return known


def decline(session: Session, number: int) -> None:
    """Tells the broker that a line is not used, or not any more."""
    session.put(Frame(Kind.LINE, Flag.LAST, Lane.CONTROL, stream=number))
