"""Peers on whose lines messages in shared memory travel."""

from __future__ import annotations

import gc

from broker.limits import MIB
from broker.protocol.bodies import Line, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane, pack_header
from broker.protocol.line import TAKEN, Releases
from broker.protocol.places import PLACE
from broker.protocol.sharing import Release, released
from broker.transport.shared_memory import SharedMemory
from tests.state.harness import Talk
from tests.state.liners import Liner

ARENA_BYTES = 4 * MIB
BLOCK_BYTES = 64 * 1024


class Placer(Liner):
    """A Liner that shares memory as well.

    Attributes:
        names: of its own arenas, as the broker has told them.
        taken: of the line that came last, the positions of what was taken and not let go of.
    """

    def __init__(self, talk: Talk, name: str, *, arena: bool = False, bell: bool = True) -> None:
        super().__init__(talk, name, bell=bell)
        self._loans = 0
        self.taken: list[int] = []
        self._ends: dict[int, Releases] = {}
        if arena:
            self.make_arena(1)

    # As a publisher.

    def make_arena(self, number: int) -> None:
        memory = SharedMemory.create(ARENA_BYTES)
        self._memory.append(memory)
        self.passage.given.append(memory)
        self.peer.put(
            Kind.ARENA, number=number, count=1, total_bytes=ARENA_BYTES, sequence=memory.identity, lane=Lane.CONTROL
        )

    @property
    def names(self) -> dict[int, int]:
        return {frame.number: frame.target for frame in self.peer.all_of(Kind.MAPPED) if not frame.stream}

    def known(self) -> set[int]:
        """Its own arenas in which a message may lie on the line that it was offered last."""
        told = decode_body(self.offers()[-1].body, Line)
        names = {*told.arenas, *(each.target for each in self.peer.all_of(Kind.MAPPED) if each.stream == self.line)}
        return {own for own, name in self.names.items() if name in names}

    def place_by_socket(self, topic: str, arena: int = 1) -> int:
        """Publishes a message in shared memory through the socket; returns its loan."""
        self._loans += 1
        place = PLACE.pack(arena, self._loans, self._loans % 32 * BLOCK_BYTES)
        self.peer.publish(topic, place, Flag.SHARED, total_bytes=BLOCK_BYTES)
        return self._loans

    def place(self, topic: str, name: int | None = None, offset: int | None = None, flags: int = 0, **lies: int) -> int:
        """Writes the place of a message to the line; returns its loan."""
        self._loans += 1
        at = self._loans % 32 * BLOCK_BYTES if offset is None else offset
        place = PLACE.pack(self.names[1] if name is None else name, lies.get("loan", self._loans), at)
        header = pack_header(
            Kind.PUBLISH, Flag.SHARED | flags, Lane.DEFAULT, 1, self.peer.topic(topic), lies.get("target", 0), 0,
            lies.get("count", 0), 0, len(place), lies.get("total_bytes", BLOCK_BYTES), 0, 7,
        )  # fmt: skip
        assert self.writer.write(header, b"", place) >= 0
        return self._loans

    def go_on_line(self, topic: str, messages: int = 8) -> None:
        """Publishes in shared memory until a line is offered, and begins it."""
        for _ in range(messages):
            self.place_by_socket(topic)
        self.accept()
        self.start(topic)

    def wait_for_memory(self) -> None:
        self.peer.put(Kind.DRAIN, lane=Lane.CONTROL)

    def back(self) -> list[int]:
        """Loans that the broker has released since the last time."""
        gc.collect()
        self.peer.talk.settle()
        found = [loan for frame in self.peer.all_of(Kind.RELEASE) for loan in released(frame)]
        self.peer.frames = [frame for frame in self.peer.frames if frame.kind != Kind.RELEASE]
        return sorted(found)

    # As a reader.

    def map_arenas(self, mapped: int = 1) -> None:
        """Says of all arenas that it was told of that it has mapped them."""
        for frame in [frame for frame in self.peer.all_of(Kind.ARENA) if not frame.flags & Flag.LAST]:
            self.peer.frames.remove(frame)
            self.peer.put(Kind.MAPPED, number=frame.number, count=mapped, lane=Lane.CONTROL)

    def let_go_of_socket(self) -> None:
        """Lets go of all that has come by the socket."""
        shared = [frame for frame in self.peer.delivered() if frame.flags & Flag.SHARED]
        leases = [PLACE.unpack(frame.payload)[1] for frame in shared]
        self.peer.frames = [frame for frame in self.peer.frames if frame not in shared]
        self.peer.put(Kind.RELEASE, body=Release(leases), lane=Lane.CONTROL)

    def releases(self) -> Releases:
        """Where it says what it has let go of, for the line that came last."""
        number = self.attached()[-1].target
        self.reader()
        if number not in self._ends:
            place = self._places[number]
            self._ends[number] = Releases(place, place.address)
        return self._ends[number]

    def take(self, messages: int = 1 << 30) -> list[int]:
        """Takes messages from the line that came last; returns their offsets."""
        found, frame = [], Frame(0)
        while len(found) < messages and self.reader().take(frame) == TAKEN:
            found.append(PLACE.unpack(frame.payload)[2])
            self.taken.append(self.reader().position)
        return found

    def let_go(self, messages: int = 1 << 30) -> list[int]:
        """Lets go of so many, the oldest first; returns what it was told."""
        gone, self.taken = self.taken[:messages], self.taken[messages:]
        return [self.releases().release(position) for position in gone]

    def look(self) -> None:
        """Has the broker look in its places."""
        self.peer.put(Kind.RELEASE, lane=Lane.CONTROL)


def reader_of(talk: Talk, publisher: Placer, name: str) -> Placer:
    """A reader of `a` that has mapped the publisher's arena."""
    reader = Placer(talk, name)
    reader.peer.subscribe("a", queue_messages=1000)
    publisher.place_by_socket("a")
    reader.map_arenas()
    reader.let_go_of_socket()
    return reader


def begin(publisher: Placer, *readers: Placer) -> None:
    """The publisher has a line to its readers, and all that it has published before is its own again."""
    publisher.go_on_line("a", 8 - len(readers))
    for reader in readers:
        assert reader.attached()
        reader.let_go_of_socket()
    publisher.back()


def lines(talk: Talk) -> int:
    return len(talk.state.router.lines)


def leases(reader: Placer) -> int:
    shares = reader.peer.record.shares
    assert shares is not None
    return len(shares.leases)
