"""Messages in shared memory on lines: who may read them until when, and when their publisher may write again."""

from __future__ import annotations

import gc

import pytest

from broker.limits import LEASES_MAX
from broker.protocol.bodies import Declare, Line, decode_body
from broker.protocol.frames import Flag, Kind, Lane
from broker.protocol.line import AVAILABLE, FULL, NOTED, RELEASES, WAITED_FOR
from broker.protocol.places import PLACE
from broker.protocol.sharing import Release
from tests.state.harness import Talk
from tests.state.liners import line_memory
from tests.state.placers import BLOCK_BYTES, Placer, begin, leases, lines, reader_of

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


# Who gets such a line.


def test_messages_in_shared_memory_count_and_bring_a_line_that_carries_them(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    assert lines(talk) == 1
    assert publisher.known() == {1}
    publisher.place("a", offset=5 * BLOCK_BYTES)
    assert reader.take() == [5 * BLOCK_BYTES]


def test_while_a_reader_has_not_mapped_the_arena_there_is_no_line(talk: Talk, publisher: Placer) -> None:
    reader = Placer(talk, "reader")
    reader.peer.subscribe("a", queue_messages=1000)
    for _ in range(40):
        publisher.place_by_socket("a")
    assert not publisher.offers()
    reader.map_arenas()
    for _ in range(8):
        publisher.place_by_socket("a")
    assert publisher.offers()
    assert publisher.known() == {1}


def test_for_messages_that_take_much_of_a_readers_credit_there_is_no_line(talk: Talk, publisher: Placer) -> None:
    reader = Placer(talk, "reader")
    reader.peer.subscribe("a", queue_messages=1000, queue_bytes=4 * BLOCK_BYTES)
    for _ in range(3):
        publisher.place_by_socket("a")
        reader.map_arenas()
        reader.peer.credit(1, 1, BLOCK_BYTES)
    reader.peer.subscribe("a", queue_messages=1000, queue_bytes=4 * BLOCK_BYTES - 4)
    for _ in range(80):
        publisher.place_by_socket("a")
        reader.peer.credit(1, 1, BLOCK_BYTES)
        reader.peer.credit(2, 1, BLOCK_BYTES)
    assert not publisher.offers()


def test_small_messages_bring_a_line_that_has_the_arenas_that_its_readers_have(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    for _ in range(7):
        publisher.peer.publish("a", b"small")
    publisher.accept()
    assert publisher.known() == {1}


def test_a_new_arena_is_made_known_to_the_readers_of_a_line_first(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    publisher.make_arena(2)
    assert 2 not in publisher.names
    reader.map_arenas()
    assert publisher.names.keys() == {1, 2}
    assert publisher.known() == {1, 2}
    # That the line has it is said before its publisher may use it.
    assert [frame.stream for frame in publisher.peer.all_of(Kind.MAPPED) if frame.number == 2] == [publisher.line, 0]
    publisher.place("a", publisher.names[2])
    assert len(reader.take()) == 1
    reader.let_go()
    publisher.drain("a")
    assert len(publisher.back()) == 1
    assert lines(talk) == 1


def test_a_reader_that_does_not_answer_holds_a_new_arena_up_for_some_ticks_only(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    publisher.make_arena(2)
    for _ in range(3):
        assert 2 not in publisher.names
        talk.tick(0.1)
    assert 2 in publisher.names
    assert publisher.known() == {1}
    reader.map_arenas()
    assert publisher.known() == {1, 2}
    assert len([frame for frame in publisher.peer.all_of(Kind.MAPPED) if frame.number == 2 and not frame.stream]) == 1


def test_an_arena_that_a_reader_cannot_map_is_not_for_the_line(talk: Talk, publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    publisher.make_arena(2)
    reader.map_arenas(mapped=0)
    assert 2 in publisher.names
    assert publisher.known() == {1}
    assert lines(talk) == 1


# Letting go.


def test_what_its_reader_lets_go_of_comes_back_when_the_broker_looks(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(5)]
    reader.take(3)
    assert reader.let_go(2) == [NOTED, NOTED]
    assert publisher.back() == []
    publisher.drain("a")
    assert publisher.back() == loans[:2]
    assert leases(reader) == 3
    reader.take()
    reader.let_go()
    talk.tick(0.1)
    assert publisher.back() == loans[2:]
    assert leases(reader) == 0
    assert lines(talk) == 1


def test_what_was_let_go_of_before_the_broker_had_drained_it_comes_back_at_once(
    publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    publisher.place("a")
    publisher.drain("a")
    loans = [publisher.place("a") for _ in range(3)]
    reader.take()
    reader.let_go()
    publisher.drain("a")
    assert publisher.back()[1:] == loans
    assert leases(reader) == 0


def test_a_block_comes_back_when_all_readers_have_let_go_of_it(talk: Talk, publisher: Placer, reader: Placer) -> None:
    second = reader_of(talk, publisher, "second")
    reader.let_go_of_socket()
    begin(publisher, reader, second)
    loan = publisher.place("a")
    for each in (reader, second):
        assert publisher.back() == []
        each.take()
        each.let_go()
        publisher.drain("a")
    assert publisher.back() == [loan]
    assert publisher.writer.readers == 2


def test_what_the_topic_keeps_is_lent_until_it_lets_go(publisher: Placer, reader: Placer) -> None:
    reader.peer.put(Kind.DECLARE, body=Declare("a", ring_messages=2), target=77, lane=Lane.CONTROL)
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(5)]
    reader.take()
    reader.let_go()
    publisher.drain("a")
    assert publisher.back()[-3:] == loans[:3]


def test_the_publisher_is_told_what_its_topic_keeps(publisher: Placer, reader: Placer) -> None:
    reader.peer.put(Kind.DECLARE, body=Declare("a", ring_messages=7, ring_bytes=12345), target=77, lane=Lane.CONTROL)
    begin(publisher, reader)
    told = decode_body(publisher.offers()[-1].body, Line)
    assert (told.keeps_messages, told.keeps_bytes) == (7, 12345)


def test_a_topic_that_keeps_nothing_says_so(publisher: Placer, reader: Placer) -> None:
    reader.peer.put(Kind.DECLARE, body=Declare("a", retain=False), target=77, lane=Lane.CONTROL)
    begin(publisher, reader)
    told = decode_body(publisher.offers()[-1].body, Line)
    assert (told.keeps_messages, told.keeps_bytes) == (0, 0)


def test_a_line_does_not_begin_whose_topic_keeps_something_else_by_then(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    for _ in range(8):
        publisher.place_by_socket("a")
    publisher.accept()
    reader.peer.put(Kind.DECLARE, body=Declare("a", ring_messages=9), target=77, lane=Lane.CONTROL)
    publisher.start("a")
    assert lines(talk) == 0
    assert not reader.attached()


def test_a_topic_that_is_to_keep_more_ends_its_line_first(talk: Talk, publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(3)]
    reader.take()
    reader.let_go()
    reader.peer.put(Kind.DECLARE, body=Declare("a", ring_messages=9), target=77, lane=Lane.CONTROL)
    assert lines(talk) == 0
    # Until then it has kept nothing.
    assert publisher.back() == loans


def test_an_arena_ends_behind_what_lies_there_and_was_not_drained(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(3)]
    reader.take()
    reader.let_go()
    publisher.peer.put(Kind.ARENA, Flag.LAST, number=1, lane=Lane.CONTROL)
    assert publisher.back() == loans
    assert lines(talk) == 1
    assert publisher.peer.session.failure is None


def test_an_arena_ends_behind_what_was_let_go_of_after_the_line_had_ended(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(3)]
    reader.take()
    publisher.peer.publish("a", b"by the socket")
    assert lines(talk) == 0
    reader.let_go()
    # Its publisher saw that, and thinks that nobody reads there any more.
    publisher.peer.put(Kind.ARENA, Flag.LAST, number=1, lane=Lane.CONTROL)
    assert publisher.back() == loans
    assert [frame.number for frame in reader.peer.all_of(Kind.ARENA) if frame.flags & Flag.LAST] == [publisher.names[1]]


def test_a_full_place_is_looked_at_when_its_reader_says_so(publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    loans = []
    for _ in range(RELEASES + 10):
        loans.append(publisher.place("a"))
        reader.take()
    assert reader.let_go() == [NOTED] * RELEASES + [FULL] * 10
    reader.look()
    assert publisher.back()
    assert reader.releases().again() is False
    reader.look()
    assert leases(reader) == 0


def test_a_publisher_that_waits_is_told_when_half_of_what_is_lent_has_come_back(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(4)]
    reader.take()
    publisher.wait_for_memory()
    assert publisher.back() == []
    assert reader.let_go(3) == [NOTED, WAITED_FOR, NOTED]
    reader.look()
    assert publisher.back() == loans[:3]


def test_a_publisher_that_waits_for_what_is_there_gets_it_at_once(publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(2)]
    reader.take()
    publisher.drain("a")
    reader.let_go(1)
    publisher.wait_for_memory()
    assert publisher.back() == loans[:1]
    assert reader.let_go() == [NOTED]


# What ends a line.


def test_what_a_reader_has_not_taken_at_the_end_comes_by_the_socket(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(3)]
    taken = reader.take(1)
    loans.append(publisher.place_by_socket("a"))
    assert lines(talk) == 0
    delivered = [frame for frame in reader.peer.delivered() if frame.flags & Flag.SHARED]
    assert len(taken) == 1
    assert len(delivered) == 3
    assert [frame.sequence for frame in delivered] == list(range(delivered[0].sequence, delivered[0].sequence + 3))
    assert leases(reader) == 4
    reader.let_go_of_socket()
    assert publisher.back() == loans[1:]
    assert leases(reader) == 1


def test_a_reader_that_was_ejected_goes_on_with_what_it_has(talk: Talk, publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(3)]
    reader.take()
    reader.let_go(1)
    publisher.peer.publish("b", b"")
    reader.peer.subscribe("a")
    assert lines(talk) == 0
    assert publisher.back() == loans[:1]
    reader.let_go(1)
    talk.tick(0.1)
    assert publisher.back() == loans[1:2]
    publisher.wait_for_memory()
    assert reader.let_go() == [WAITED_FOR]
    reader.look()
    assert publisher.back() == loans[2:]
    assert not talk.state.own.lines._leases


def test_a_reader_that_dies_has_let_go_of_all(talk: Talk, publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(3)]
    reader.take(2)
    assert talk.state.still_reads(reader.peer.record)
    reader.peer.die()
    assert publisher.back() == loans


def test_a_reader_whose_process_may_read_on_keeps_what_it_has_taken_and_no_more(
    talk: Talk, publisher: Placer, reader: Placer
) -> None:
    begin(publisher, reader)
    loans = [publisher.place("a") for _ in range(3)]
    reader.take(2)
    record = reader.peer.record
    assert talk.state.still_reads(record)
    talk.state.disconnect(record.id, talk.now_ns, reads_on=True)
    assert publisher.back() == loans[2:]
    assert leases(reader) == 2
    assert record.shares is not None
    record.shares.leases.clear()
    assert publisher.back() == loans[:2]


def test_the_end_of_the_publisher_takes_nothing_from_its_readers(talk: Talk, publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    for _ in range(3):
        publisher.place("a")
    reader.take(2)
    publisher.peer.die()
    assert lines(talk) == 0
    assert leases(reader) == 2
    # A short message is not to hold a long arena: what was not taken comes as a copy.
    assert reader.peer.large() == [bytes(BLOCK_BYTES)]
    reader.let_go(1)
    talk.tick(0.1)
    assert leases(reader) == 1
    assert not [frame for frame in reader.peer.all_of(Kind.ARENA) if frame.flags & Flag.LAST]
    reader.let_go()
    talk.tick(0.1)
    gc.collect()
    talk.settle()
    assert [frame for frame in reader.peer.all_of(Kind.ARENA) if frame.flags & Flag.LAST]


def test_a_reader_that_has_as_much_as_it_may_ends_the_line(
    talk: Talk, publisher: Placer, reader: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LEASES_MAX == 65_536
    begin(publisher, reader)
    monkeypatch.setattr("broker.state.line_leases.LEASES_MAX", 4)
    for _ in range(3):
        publisher.place("a")
    publisher.drain("a")
    assert lines(talk) == 1
    publisher.place("a")
    publisher.drain("a")
    assert lines(talk) == 0


def test_a_reader_without_credit_holds_its_publisher_back_and_the_line_stays(publisher: Placer, talk: Talk) -> None:
    reader = Placer(talk, "reader")
    reader.peer.subscribe("a", queue_messages=1000, queue_bytes=20 * BLOCK_BYTES)
    publisher.place_by_socket("a")
    reader.map_arenas()
    publisher.go_on_line("a", 7)
    sent = 8
    # A message takes a 64th of its bytes of the topic's credit, of which half is given back at once.
    while not publisher.peer.record.publishers[1].held_back:
        publisher.place("a")
        sent += 1
        reader.take()
        publisher.drain("a")
    assert lines(talk) == 1
    assert sent >= 1024
    credit = publisher.peer.topic_credit("a")
    assert credit == (0, 0)
    reader.take()
    reader.peer.credit(1, sent, sent * BLOCK_BYTES)
    assert publisher.peer.topic_credit("a")[0] > credit[0]
    assert not publisher.peer.record.publishers[1].held_back
    assert lines(talk) == 1


def test_a_word_of_a_lease_by_the_socket_counts_as_well(publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    loan = publisher.place("a")
    reader.take()
    publisher.drain("a")
    shares = reader.peer.record.shares
    assert shares is not None
    reader.peer.put(Kind.RELEASE, body=Release(list(shares.leases)), lane=Lane.CONTROL)
    assert publisher.back() == [loan]
    reader.let_go()
    publisher.drain("a")
    assert reader.peer.is_open


def test_the_place_on_the_line_is_named_as_readers_know_it(publisher: Placer, reader: Placer) -> None:
    begin(publisher, reader)
    # The second of all arenas: the publisher's number for it is 1 all the same.
    assert PLACE.size == 16
    assert list(publisher.names) == [1]
    assert publisher.names[1] == 1
