"""Memory that a publisher has back from its line without the broker: never what somebody reads, or the topic keeps."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.limits import LINE_DATA_BYTES, PUBLISH_WINDOW_BYTES
from broker.protocol.frames import HEADER_BYTES, Flag, Frame, Kind, Lane, pack_header
from broker.protocol.line import (
    AVAILABLE,
    DATA_OFFSET,
    PLACE_BYTES,
    RELEASES,
    TAKEN,
    Drain,
    Reader,
    Releases,
    Writer,
    format_ring,
)
from broker.protocol.places import PLACE
from broker.transport.shared_memory import SharedMemory
from clients.publishing.line_out import LineOut
from tests.clients.publishing.test_outgoing import connected_core, drain

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")

RELEASED_AT, COLLECTED_AT, FIRST_AT = 256, 384, 1024
SIZE = 1000


class Ring:
    """A line with all its ends in this process."""

    def __init__(self, readers: int = 1, keeps_messages: int = 0, keeps_bytes: int = 1 << 30) -> None:
        memory = SharedMemory.create(DATA_OFFSET + LINE_DATA_BYTES, common=True)
        format_ring(memory.address, memory.size_bytes)
        self.places = [SharedMemory.create(PLACE_BYTES, common=True) for _ in range(readers)]
        writer = Writer(memory, memory.address, memory.size_bytes)
        self.drain = Drain(memory, memory.address, memory.size_bytes)
        self.readers, self.releases, self.collecting = [], [], []
        for place in self.places:
            writer.add(place, place.address)
            self.drain.add(place, place.address)
            reader = Reader(memory, memory.address, memory.size_bytes)
            reader.add(place, place.address)
            self.readers.append(reader)
            self.releases.append(Releases(place, place.address))
            self.collecting.append(Releases(place, place.address))
        self.line = LineOut(1, writer, [], 0)
        self.line.keeps_messages, self.line.keeps_bytes = keeps_messages, keeps_bytes
        self.loan = 0
        self.positions: list[int] = []

    def publish(self, size_bytes: int = SIZE) -> int:
        """Writes a message, which all readers take; returns its loan."""
        self.loan += 1
        place = PLACE.pack(1, self.loan, 0)
        header = pack_header(Kind.PUBLISH, Flag.SHARED, Lane.DEFAULT, 1, 1, 0, 0, 0, 0, len(place), size_bytes, 0, 7)
        assert len(header) == HEADER_BYTES
        assert self.line.write(header, b"", place, size_bytes)
        for reader in self.readers:
            assert reader.take(Frame(0)) == TAKEN
        assert self.drain.take(Frame(0)) == TAKEN
        self.drain.drained()
        self.positions.append(self.readers[0].position)
        return self.loan

    def let_go(self, loan: int, reader: int = 0) -> None:
        self.releases[reader].release(self.positions[loan - 1])

    def collect(self, reader: int = 0) -> None:
        """The broker takes note of what a reader has let go of."""
        self.collecting[reader].collect(self.collecting[reader].released())


def test_what_its_reader_has_let_go_of_comes_back_once_but_the_newest_does_not() -> None:
    ring = Ring()
    loans = [ring.publish() for _ in range(4)]
    assert ring.line.take_back() == []
    for loan in (loans[2], loans[0], loans[3]):
        ring.let_go(loan)
    assert ring.line.take_back() == [loans[2], loans[0]]
    assert ring.line.take_back() == []
    ring.publish()
    assert ring.line.take_back() == [loans[3]]


def test_what_the_topic_keeps_by_number_comes_back_when_newer_ones_are_there() -> None:
    ring = Ring(keeps_messages=3)
    loans = [ring.publish() for _ in range(5)]
    for loan in loans:
        ring.let_go(loan)
    assert ring.line.take_back() == loans[:2]
    ring.publish()
    assert ring.line.take_back() == [loans[2]]


def test_what_the_topic_keeps_by_length_comes_back_when_newer_ones_are_there() -> None:
    ring = Ring(keeps_messages=1000, keeps_bytes=3 * SIZE)
    loans = [ring.publish() for _ in range(4)]
    for loan in loans:
        ring.let_go(loan)
    assert ring.line.take_back() == loans[:1]
    ring.publish(3 * SIZE)
    assert ring.line.take_back() == loans[1:]


def test_it_comes_back_when_all_readers_have_let_go_of_it_and_none_speaks_for_another() -> None:
    ring = Ring(readers=3)
    first, _ = ring.publish(), ring.publish()
    for reader in (0, 2, 0, 2, 0):
        ring.let_go(first, reader)
        assert ring.line.take_back() == []
    ring.let_go(first, 1)
    assert ring.line.take_back() == [first]


def test_of_a_broker_that_does_not_say_what_it_keeps_nothing_is_taken_back() -> None:
    ring = Ring(keeps_messages=-1)
    first, _ = ring.publish(), ring.publish()
    ring.let_go(first)
    assert ring.line.take_back() == []


def test_what_was_written_over_before_it_was_seen_is_left_to_the_broker() -> None:
    ring = Ring()
    loans = [ring.publish() for _ in range(RELEASES + 11)]
    for loan in loans[:-1]:
        ring.let_go(loan)
        ring.collect()
    back = ring.line.take_back()
    assert back == loans[-RELEASES:-1]
    ring.publish()
    ring.let_go(loans[-1])
    assert ring.line.take_back() == loans[-1:]


def test_more_than_was_written_is_not_looked_at_and_unknown_positions_are_nothing() -> None:
    ring = Ring(readers=2)
    first, _ = ring.publish(), ring.publish()
    for number in range(RELEASES):
        ctypes.c_uint64.from_address(ring.places[0].address + FIRST_AT + 8 * number).value = 8 * number
    ctypes.c_uint64.from_address(ring.places[0].address + RELEASED_AT).value = (1 << 64) - 1
    ring.let_go(first, 1)
    for _ in range(2 * RELEASES):
        assert set(ring.line.take_back()) <= {first}


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1 << 63)), max_size=40), st.integers(0, 1 << 63))
def test_whatever_one_reader_writes_what_the_other_reads_does_not_come_back(
    words: list[tuple[int, int]], count: int
) -> None:
    ring = Ring(readers=2)
    loans = [ring.publish() for _ in range(3)]
    for loan in loans:
        ring.let_go(loan, 0)
    for at, value in words:
        address = ring.places[0].address + (FIRST_AT + value % RELEASES * 8 if at else RELEASED_AT)
        ctypes.c_uint64.from_address(address).value = value if at else count
        assert ring.line.take_back() == []


def test_the_broker_is_asked_for_credit_when_a_fourth_is_left_and_not_before() -> None:
    core, session = connected_core()
    topic, line = core.outgoing.topic("a"), Ring().line
    drain(core, session)
    topic.line, line.arenas, line.shared_bytes_max = line, frozenset({1}), SIZE
    charged_bytes = PUBLISH_WINDOW_BYTES // 8
    lows, kinds = [], []
    for number in range(7):
        lows.append(core.outgoing.is_low(core.outgoing.topics["a"]))
        frame = Frame(
            Kind.PUBLISH, Flag.SHARED, Lane.DEFAULT, number=topic.number, total_bytes=SIZE,
            payload=PLACE.pack(1, number + 1, 0),
        )  # fmt: skip
        core.outgoing.publish_shared(topic, frame, charged_bytes, 1)
        kinds.append(drain(core, session))
    # With what is written last, credit is below a fourth; before it, just at that.
    assert kinds == [[]] * 6 + [[Kind.DRAIN]]
    assert lows == [False] * 7
    assert core.outgoing.is_low(core.outgoing.topics["a"])
    topic.line = None
    assert not core.outgoing.is_low(core.outgoing.topics["a"])
    assert not core.outgoing.is_low(None)
