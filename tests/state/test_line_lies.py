"""Messages in shared memory on lines, of publishers and readers that lie: they harm themselves alone."""

from __future__ import annotations

import ctypes

import pytest

from broker.protocol.frames import Flag, Kind, Lane
from broker.protocol.line import AVAILABLE
from tests.state.harness import Talk
from tests.state.liners import line_memory
from tests.state.placers import ARENA_BYTES, BLOCK_BYTES, Placer, begin, leases, lines, reader_of

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


@pytest.fixture
def talk() -> Talk:
    # No ring: what it keeps is a matter of its own.
    return Talk(line_memory=line_memory, ring_messages=0)


@pytest.fixture
def publisher(talk: Talk) -> Placer:
    return Placer(talk, "publisher", arena=True, bell=False)


@pytest.fixture
def reader(talk: Talk, publisher: Placer) -> Placer:
    return reader_of(talk, publisher, "reader")


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"name": 77}, "not all of its readers have"),
        ({"offset": ARENA_BYTES - BLOCK_BYTES + 1}, "no such place"),
        ({"offset": 1 << 63}, "no such place"),
        ({"total_bytes": 0}, "no such place"),
        ({"total_bytes": ARENA_BYTES + 1}, "no such place"),
        ({"flags": Flag.BATCH, "count": 1}, "batch"),
        ({"flags": Flag.CHUNKED}, "on a line"),
    ],
)
def test_a_publisher_that_names_no_place_ends_its_session(
    talk: Talk, publisher: Placer, reader: Placer, lie: dict[str, int], words: str
) -> None:
    begin(publisher, reader)
    publisher.place("a", **lie)
    talk.tick(0.1)
    assert not publisher.peer.is_open
    assert words in str(publisher.peer.record.session.failure)
    assert reader.peer.is_open
    assert leases(reader) == 0


def test_a_loan_that_is_in_use_ends_its_publishers_session(talk: Talk, publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    loan = publisher.place("a")
    publisher.place("a", loan=loan)
    talk.tick(0.1)
    assert "is in use" in str(publisher.peer.record.session.failure)


def test_an_arena_that_has_ended_is_no_place(talk: Talk, publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    publisher.peer.put(Kind.ARENA, Flag.LAST, number=1, lane=Lane.CONTROL)
    publisher.place("a")
    talk.tick(0.1)
    assert "no such place" in str(publisher.peer.record.session.failure)


def test_a_reader_that_lets_go_of_what_it_does_not_have_harms_nobody(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    loan = publisher.place("a")
    reader.take()
    for position in (8, 1 << 40, *reader.taken, *reader.taken):
        reader.releases().release(position)
    publisher.drain("a")
    assert publisher.back() == [loan]
    assert reader.peer.is_open
    assert lines(talk) == 1


def test_a_reader_that_writes_a_count_that_cannot_be_keeps_what_it_has_to_its_end(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    loan = publisher.place("a")
    reader.take()
    publisher.drain("a")
    place = reader._places[reader.attached()[-1].target]
    ctypes.memmove(place.address + 256, (1 << 40).to_bytes(8, "little"), 8)
    publisher.wait_for_memory()
    publisher.wait_for_memory()
    assert publisher.back() == []
    assert lines(talk) == 1
    reader.peer.die()
    assert publisher.back() == [loan]
