"""Whatever the publisher of a line, its readers and those who come and go do, in whatever order: what somebody may
still read is not written to, and in the end all memory has come back."""

from __future__ import annotations

import gc
import random
import struct

import pytest

from broker.protocol.bodies import Declare, Line, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane, pack_header
from broker.protocol.line import AVAILABLE, TAKEN, Releases
from broker.protocol.places import PLACE
from broker.protocol.sharing import Release
from clients.publishing.line_out import LineOut
from tests.state.harness import Talk
from tests.state.liners import line_memory
from tests.state.placers import BLOCK_BYTES, Placer
from tests.thorough import rounds

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")

BLOCKS = 12
"""So few that each is written to again soon."""
NUMBER = struct.Struct("<Q")


class Publisher(Placer):
    """Publishes in few blocks, and writes to each as soon as it may: as LineOut or the broker says."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(talk, "publisher", arena=True, bell=False)
        (memory,) = self._memory
        self.bytes = memory.view(0, memory.size_bytes, memory)
        self.free = [number * BLOCK_BYTES for number in range(BLOCKS)]
        self.lent: dict[int, int] = {}
        self.out: LineOut | None = None
        self.lines = self.reused = 0
        self._accepted = 0

    def number_at(self, offset: int) -> int:
        return NUMBER.unpack_from(self.bytes, offset)[0]

    def publish(self) -> None:
        if not self.free:
            return
        offset, number = self.free.pop(), self._loans + 1
        NUMBER.pack_into(self.bytes, offset, number)
        self.lent[number] = offset
        if not self._on_line(number, offset):
            self.out = None
            place = PLACE.pack(1, number, offset)
            self.peer.publish("a", place, Flag.SHARED, total_bytes=BLOCK_BYTES, time_ns=number)
        self._loans = number

    def _on_line(self, number: int, offset: int) -> bool:
        if self.out is None or 1 not in self.known():
            return False
        place = PLACE.pack(self.names[1], number, offset)
        header = pack_header(
            Kind.PUBLISH, Flag.SHARED, Lane.DEFAULT, 1, self.peer.topic("a"), 0, 0, 0, 0, len(place), BLOCK_BYTES, 0,
            number,
        )  # fmt: skip
        return self.out.write(header, b"", place, BLOCK_BYTES)

    def small(self) -> None:
        """A message that stands on the line beside the others, or ends it."""
        if self.out is None or self.write("a", b"small") < 0:
            self.out = None
            self.peer.publish("a", b"small")

    def begin_line(self) -> None:
        """Takes the line that it was offered, or has the broker offer one after the next message."""
        offers = self.offers()
        if len(offers) > self._accepted:
            self._accepted = len(offers)
            if not any(frame.flags & Flag.LAST and frame.stream == offers[-1].stream for frame in self.peer.frames):
                self.accept()
                told = decode_body(offers[-1].body, Line)
                self.out = LineOut(self.line, self.writer, [], 0)
                self.out.keeps_messages, self.out.keeps_bytes = told.keeps_messages, told.keeps_bytes
                self.start("a")
                self.lines += 1
        elif self.out is None and 1 in self.peer.record.publishers:
            self.peer.record.publishers[1].until_line = 1

    def take_back(self) -> None:
        back = [] if self.out is None else self.out.take_back()
        self.reused += len(back)
        self._have_back(back)

    def listen(self) -> None:
        self._have_back(self.back())

    def _have_back(self, loans: list[int]) -> None:
        # A loan comes back by the line and by the broker, whoever is first.
        self.free += [self.lent.pop(loan) for loan in loans if loan in self.lent]

    def look(self) -> None:
        self.drain("a")


class Reader(Placer):
    """Reads on lines and by the socket, and keeps for a while what it has read."""

    def __init__(self, talk: Talk, name: str) -> None:
        super().__init__(talk, name)
        self.held: list[tuple[int, int, Releases | None, int]] = []
        self._seen: set[int] = set()

    def read(self, most: int = 3) -> None:
        self.map_arenas()
        for frame in self.peer.delivered():
            if frame.flags & Flag.SHARED and id(frame) not in self._seen:
                self._seen.add(id(frame))
                _, lease, offset = PLACE.unpack(frame.payload)
                self.held.append((frame.time_ns, offset, None, lease))
        if self.attached():
            frame = Frame(0)
            for _ in range(most):
                if self.reader().take(frame) != TAKEN:
                    break
                if frame.flags & Flag.SHARED:
                    offset = PLACE.unpack(frame.payload)[2]
                    self.held.append((frame.time_ns, offset, self.releases(), self.reader().position))

    def let_go_of(self, number: int) -> None:
        _, _, releases, name = self.held.pop(number)
        if releases is None:
            self.peer.put(Kind.RELEASE, body=Release([name]), lane=Lane.CONTROL)
        else:
            releases.release(name)


class World:
    """All of them, of whom one after the other does something."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.talk = Talk(line_memory=line_memory, ring_messages=self.random.choice([0, 3, 5]))
        self.publisher = Publisher(self.talk)
        self.readers = [self._reader() for _ in range(self.random.choice([1, 2, 3]))]
        self.far = self.talk.peer("far")
        self.far_numbers: list[int] = []
        self._far_checked = 0
        self._far_begun: dict[int, int] = {}

    def _reader(self) -> Reader:
        reader = Reader(self.talk, f"reader-{self.random.random()}")
        overflow = self.random.choice(["block", "drop_oldest"])
        reader.peer.subscribe("a", overflow, queue_messages=1000, replay=self.random.choice([None, "all", "latest"]))
        return reader

    def act(self) -> None:
        publisher, readers, choose = self.publisher, self.readers, self.random.choice
        acts = [publisher.publish] * 8 + [publisher.take_back] * 4 + [publisher.begin_line] * 3
        acts += [publisher.listen, publisher.look, lambda: self.talk.tick(0.1)]
        reader = choose(readers)
        acts += [reader.read] * 8 + [lambda: self._let_go(reader)] * 12
        chance = self.random.random()
        if chance < 0.02:
            acts = [self._far, self._far, self._far, self._keep, self._come, self._die]
        elif chance < 0.1:
            # While there is such a reader there is no line.
            acts = [self._far] if self.far_numbers else [self._credit]
        elif chance < 0.105:
            acts = [publisher.small]
        choose(acts)()

    def _let_go(self, reader: Reader) -> None:
        if reader.held:
            reader.let_go_of(self.random.randrange(len(reader.held)))

    def _far(self) -> None:
        """Somebody who shares no memory comes or goes: it is sent the bytes, as the broker finds them."""
        if self.far_numbers:
            self.far.put(Kind.UNSUBSCRIBE, number=self.far_numbers.pop(), target=99)
        else:
            replay = self.random.choice([None, "all", "all", "latest", 1])
            self.far_numbers.append(self.far.subscribe("a", queue_messages=1000, replay=replay))

    def _keep(self) -> None:
        wishes = {"ring_messages": self.random.choice([0, 2, 6, 6]), "ring_bytes": self.random.choice([1, 4, 50, 50])}
        wishes["ring_bytes"] *= BLOCK_BYTES
        self.far.put(Kind.DECLARE, body=Declare("a", **wishes), target=1, lane=Lane.CONTROL)

    def _come(self) -> None:
        if len(self.readers) < 3:
            self.readers.append(self._reader())

    def _die(self) -> None:
        if len(self.readers) > 1:
            self.readers.pop(self.random.randrange(len(self.readers))).peer.die()

    def _credit(self) -> None:
        for reader in self.readers:
            reader.peer.credit(1, 100, 100 * BLOCK_BYTES)

    def check(self) -> None:
        for reader in self.readers:
            assert reader.peer.is_open
            for number, offset, _, _ in reader.held:
                assert self.publisher.number_at(offset) == number
        assert self.publisher.peer.is_open
        self._check_far()

    def _check_far(self) -> None:
        """What was sent is what was published: the number in the bytes is the one that the message's frame has."""
        for frame in self.far.frames[self._far_checked :]:
            if frame.kind == Kind.DELIVER and frame.flags & Flag.CHUNKED:
                self._far_begun[frame.stream] = frame.time_ns
            elif frame.kind == Kind.CHUNK and frame.sequence == 0:
                assert NUMBER.unpack_from(frame.payload, 0)[0] == self._far_begun[frame.stream]
        self._far_checked = len(self.far.frames)

    def end(self) -> None:
        """All let go of all."""
        publisher = self.publisher
        for number in self.far_numbers:
            self.far.put(Kind.UNSUBSCRIBE, number=number, target=99)
        for _ in range(3):
            publisher.peer.publish("a", b"the line is over")
            for reader in self.readers:
                reader.peer.credit(1, 1000, 1000 * BLOCK_BYTES)
                reader.read(1 << 30)
                self.check()
                while reader.held:
                    reader.let_go_of(0)
        self.far.put(Kind.DECLARE, body=Declare("a", retain=False), target=1, lane=Lane.CONTROL)
        self.talk.tick(0.2)
        publisher.listen()


@pytest.mark.parametrize("seed", range(rounds(30)))
def test_what_somebody_may_read_is_not_written_to_and_all_of_it_comes_back(seed: int) -> None:
    # What was there before is not looked through each time that the world's garbage is collected.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        world = World(seed)
        for _ in range(2000):
            world.act()
            world.check()
        world.end()
        publisher = world.publisher
        assert sorted(publisher.free) == [number * BLOCK_BYTES for number in range(BLOCKS)]
        assert publisher.peer.record.shares is not None
        assert not publisher.peer.record.shares._lent
        # Otherwise nothing was seen of what this is about.
        assert publisher.lines
        assert publisher.reused
    finally:
        gc.enable()
