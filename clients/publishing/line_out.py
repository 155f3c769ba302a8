"""A topic's line, as its publisher has it: messages are written where the readers of the topic read them. Pure but for
the bells that it rings.

The broker offers a line and drains it; see broker/state/lines.py. Whatever does not fit on it, or cannot travel on it,
goes by the socket, and with that the line is over: the broker takes in what is on it first, so nothing is overtaken.
"""

from __future__ import annotations

import logging
from typing import Final
from weakref import WeakValueDictionary

from broker.errors import InvalidValue, LimitExceeded
from broker.limits import LINE_DATA_BYTES, SHARED_AHEAD_BYTES
from broker.protocol.bodies import Line, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.line import PLACE_BYTES, READERS_MAX, VERSION, Writer
from broker.protocol.session import Session
from broker.protocol.sharing import HasDescriptor, Passage
from broker.transport.calls import ring

log = logging.getLogger(__name__)

_HALF_BYTES: Final = LINE_DATA_BYTES // 2
_DEFAULT: Final = int(Lane.DEFAULT)
_MAY_HAVE: Final = int(Flag.SHARED | Flag.ACKNOWLEDGE)
_GIVEN_BACK_BYTES: Final = SHARED_AHEAD_BYTES // 2


class LineOut:
    """A line to which messages are written.

    Attributes:
        number: by which the broker knows it.
        asks: the flag of requests or of last replies, if such can travel on it; else 0.
        arenas: in which messages may lie, by the numbers by which others know them.
        shared_bytes_max: how long such a message may be.
    """

    __slots__ = (
        "__weakref__", "_bells", "_told", "_writer", "arenas", "asks", "number", "shared_bytes_max",
    )  # fmt: skip

    def __init__(self, number: int, writer: Writer, bells: list[HasDescriptor], asks: int) -> None:
        self.number = number
        self.asks = asks
        self.arenas: frozenset[int] = frozenset()
        self.shared_bytes_max = 0
        self._writer = writer
        self._bells = bells
        # The broker has been told of what is before it, and may not have looked yet.
        self._told = 0

    def write(self, header: bytes, body: bytes, payload: bytes) -> bool:
        """Publishes a message and wakes its readers; says whether it has, else the line is over."""
        sleepers = self._writer.write(header, body, payload)
        if sleepers < 0:
            return False
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
        return self._writer.collectable() * size_bytes >= _GIVEN_BACK_BYTES

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
    """

    def __init__(self) -> None:
        self.lends = False
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
        self.lends = self.lends or bool(told.arenas)
        return line

    def _bell(self, passage: Passage, identity: int) -> HasDescriptor | None:
        arrived, known = passage.take(identity), self._bells.get(identity)
        if known is None and arrived is not None:
            self._bells[identity] = known = arrived
        return known


def decline(session: Session, number: int) -> None:
    """Tells the broker that a line is not used, or not any more."""
    session.put(Frame(Kind.LINE, Flag.LAST, Lane.CONTROL, stream=number))
