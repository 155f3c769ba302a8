"""Peers that write and read lines, as the wire and the memory see them."""

from __future__ import annotations

import os

from broker.errors import LimitExceeded
from broker.protocol.bodies import Attach, Hello, Line, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane, pack_header
from broker.protocol.line import PLACE_BYTES, TAKEN, VERSION, Reader, Writer
from broker.protocol.sharing import CommonMemory
from broker.security.identity import ANYBODY, Identity
from broker.transport.shared_memory import SharedMemory
from tests.state.harness import Peer, Talk

BELL = 1 << 62


def line_memory(size_bytes: int) -> CommonMemory:
    return SharedMemory.create(size_bytes, common=True)


class Held:
    """A descriptor that stands for a bell."""

    descriptor = 0


class LinePassage:
    """Passes descriptors within this process."""

    def __init__(self) -> None:
        self.enabled = False
        self.given: list[object] = []

    def give(self, memory: object) -> None:
        self.given.append(memory)

    def take(self, identity: int) -> Held | None:
        return Held() if identity == BELL else None

    def adopt(self, identity: int, size_bytes: int, *, common: bool = False, read_only: bool = False) -> SharedMemory:
        for handle in self.given:
            descriptor = getattr(handle, "descriptor", 0)
            if descriptor and os.fstat(descriptor).st_ino == identity:
                return SharedMemory.adopt(os.dup(descriptor), size_bytes, common=common, read_only=read_only)
        raise LimitExceeded("shared memory", size_bytes, 0)


class Liner:
    """A client that can use lines.

    Attributes:
        peer: its session.
        writer: its end of the line that it was offered last.
        line: that line's number.
    """

    def __init__(
        self,
        talk: Talk,
        name: str,
        *,
        lines: int = VERSION,
        bell: bool = True,
        identity: Identity = ANYBODY,
        tenant: str = "",
    ) -> None:
        self.passage = LinePassage()
        hello = Hello(name, tenant=tenant, shared=True, lines=lines)
        self.peer: Peer = talk.peer(name, self.passage, identity, hello=hello)
        self.line = 0
        self.writer: Writer
        self._readers: dict[int, Reader] = {}
        self._places: dict[int, SharedMemory] = {}
        self._memory: list[SharedMemory] = []
        if bell:
            self.peer.put(Kind.BELL, sequence=BELL, lane=Lane.CONTROL)

    def _adopt(self, identity: int, size_bytes: int, *, read_only: bool = False) -> SharedMemory:
        memory = self.passage.adopt(identity, size_bytes, common=True, read_only=read_only)
        self._memory.append(memory)
        return memory

    # As a publisher.

    def offers(self) -> list[Frame]:
        """The lines that were offered."""
        return [frame for frame in self.peer.all_of(Kind.LINE) if not frame.flags & Flag.LAST]

    def accept(self) -> None:
        """Maps the line that was offered last."""
        frame = self.offers()[-1]
        told = decode_body(frame.body, Line)
        ring = self._adopt(frame.sequence, frame.total_bytes)
        self.writer = Writer(ring, ring.address, ring.size_bytes)
        for identity in told.places:
            place = self._adopt(identity, PLACE_BYTES)
            self.writer.add(place, place.address)
        self.line = frame.stream

    def start(self, topic: str) -> None:
        """Says that from here on messages stand on the line."""
        self.peer.put(Kind.DRAIN, number=self.peer.topic(topic), stream=self.line, count=1)

    def drain(self, topic: str) -> None:
        """Asks the broker to look."""
        self.peer.put(Kind.DRAIN, number=self.peer.topic(topic), stream=self.line, lane=Lane.CONTROL)

    def write(
        self, topic: str, payload: bytes, flags: int = 0, lane: int = Lane.DEFAULT, body: bytes = b"", **fields: int
    ) -> int:
        """Writes a message to the line."""
        number = fields.get("number", self.peer.topic(topic))
        kind, target = fields.get("kind", int(Kind.PUBLISH)), fields.get("target", 0)
        count, sequence = fields.get("count", 0), fields.get("sequence", 0)
        header = pack_header(kind, flags, lane, 1, number, target, 0, count, len(body), len(payload), 0, sequence, 7)
        return self.writer.write(header, body, payload)

    def go_on_line(self, topic: str, messages: int = 8) -> None:
        """Publishes until a line is offered, and begins it."""
        for number in range(messages):
            self.peer.publish(topic, b"%d" % number)
        self.accept()
        self.start(topic)

    # As a reader.

    def attached(self) -> list[Frame]:
        """The lines that are to be read."""
        return [frame for frame in self.peer.all_of(Kind.ATTACH) if not frame.flags & Flag.LAST]

    def ended(self) -> list[int]:
        """The lines that have ended."""
        return [frame.target for frame in self.peer.all_of(Kind.ATTACH) if frame.flags & Flag.LAST]

    def reader(self) -> Reader:
        """Its end of the line that came last."""
        frame = self.attached()[-1]
        if frame.target not in self._readers:
            told = decode_body(frame.body, Attach)
            ring = self._adopt(told.ring, frame.total_bytes, read_only=True)
            reader = self._readers[frame.target] = Reader(ring, ring.address, ring.size_bytes)
            place = self._places[frame.target] = self._adopt(told.place, PLACE_BYTES)
            reader.add(place, place.address)
        return self._readers[frame.target]

    def read(self, messages: int = 1 << 30) -> list[bytes]:
        """Takes messages from the line that came last."""
        found, frame = [], Frame(0)
        while len(found) < messages and self.reader().take(frame) == TAKEN:
            found.append(bytes(frame.payload))
        return found
