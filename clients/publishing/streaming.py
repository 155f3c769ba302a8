"""A large message on its way out of a client. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.buffers import Buffer, Payload, Pieces
from broker.errors import BrokerError
from broker.limits import CHUNK_BYTES
from broker.protocol.frames import HEADER_BYTES, Flag, Frame, Kind, Lane, encode, pack_header
from clients.connection.signals import Signal
from clients.publishing.outgoing_topic import OutgoingTopic

if TYPE_CHECKING:
    from clients.publishing.outgoing import Outgoing

_HEADER_BYTES = HEADER_BYTES
_CHUNK, _CONTROL, _LAST = int(Kind.CHUNK), int(Lane.CONTROL), int(Flag.LAST)


class StreamSource(Signal):
    """A large message on its way out; ready when its last byte was handed to the link, or it was given up.

    Attributes:
        opening: its first frame, until that has left.
        error: why it was given up.
    """

    __slots__ = (
        "_outgoing",
        "_pieces",
        "_position",
        "_rest",
        "attached",
        "error",
        "lane",
        "number",
        "opening",
        "topic",
    )

    def __init__(self, outgoing: Outgoing, topic: OutgoingTopic, opening: Frame, payload: Payload) -> None:
        super().__init__()
        self.topic = topic
        self.number = opening.stream
        self.attached = True
        self.error: BrokerError | None = None
        self._outgoing = outgoing
        self.opening: Frame | None = opening
        self.lane = opening.lane
        self._pieces = Pieces(payload)
        self._rest = len(payload)
        self._position = 0

    def pull(self, buffers: list[Buffer]) -> int:
        """Appends one frame; see Source."""
        topic, charged = self.topic, self.lane != _CONTROL
        if self.ready:
            self.attached = False
            return 0
        if self.opening is not None:
            opening, self.opening = self.opening, None
            if charged:
                topic.credit_messages -= 1
                topic.credit_bytes -= len(opening.body)
            return encode(opening, buffers)
        if not self._rest or (charged and topic.credit_bytes <= 0):
            self.attached = False
            return 0
        size = min(self._rest, CHUNK_BYTES)
        flags = _LAST if size == self._rest else 0
        buffers.append(pack_header(_CHUNK, flags, self.lane, 0, 0, 0, self.number, 0, 0, size, 0, self._position, 0))
        self._pieces.take(size, buffers)
        self._position += size
        self._rest -= size
        if charged:
            topic.credit_bytes -= size
        if not self._rest:
            self._outgoing.finishing.append(self)
        return _HEADER_BYTES + size
