"""Shared memory in the broker's state: which is taken, how much, and until when."""

from __future__ import annotations

import gc
import weakref

import pytest

from broker.limits import ARENAS_BYTES_MAX, ARENAS_MAX, MESSAGE_BYTES_MAX
from broker.protocol.bodies import Declare, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.places import PLACE
from broker.protocol.sharing import Release
from tests.state.harness import Talk
from tests.state.sharers import SIZE, FakeMemory, Sharer, failure_of

# Arenas.


def test_both_sides_agree_to_share(talk: Talk) -> None:
    assert Sharer(talk).peer.welcome.shared
    assert not talk.peer().welcome.shared


def test_a_broker_that_shares_nothing_says_so() -> None:
    talk = Talk(shared_memory=False)
    sharer = Sharer(talk)
    assert not sharer.peer.welcome.shared
    assert not sharer.passage.enabled
    sharer.peer.put(Kind.ARENA, number=1, count=1, total_bytes=SIZE, sequence=77)
    assert not sharer.peer.is_open


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 2, "total_bytes": SIZE, "sequence": 77},
        {"count": 1, "total_bytes": SIZE - 1, "sequence": 77},
        {"count": 1, "total_bytes": SIZE, "sequence": 78},
    ],
    ids=["version", "length", "identity"],
)
def test_an_arena_that_cannot_be_used_is_answered_and_harms_nothing(talk: Talk, fields: dict[str, int]) -> None:
    sharer = Sharer(talk)
    sharer.peer.put(Kind.ARENA, number=1, lane=Lane.CONTROL, **fields)
    assert [(frame.number, frame.count) for frame in sharer.peer.all_of(Kind.MAPPED)] == [(1, 0)]
    assert sharer.peer.is_open


def test_arenas_are_bounded(talk: Talk) -> None:
    sharer = Sharer(talk)
    for number in range(1, ARENAS_MAX + 2):
        sharer.passage.arrived[number] = FakeMemory(number)
        sharer.peer.put(Kind.ARENA, number=number, count=1, total_bytes=SIZE, sequence=number)
    answers = [frame.count for frame in sharer.peer.all_of(Kind.MAPPED)]
    assert answers == [1] * ARENAS_MAX + [0]
    assert sharer.peer.is_open


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (Frame(Kind.ARENA, number=1, count=1, total_bytes=SIZE, sequence=77), "a second arena 1"),
        (Frame(Kind.ARENA, Flag.LAST, number=2), "the end of arena 2"),
        (Frame(Kind.RELEASE, body=encode_body(Release([5]))), "RELEASE of loan 5"),
        (Frame(Kind.RELEASE, body=b"\xc1"), "malformed"),
    ],
    ids=["twice", "end", "release", "rubbish"],
)
def test_frames_that_make_no_sense_end_the_session(publisher: Sharer, frame: Frame, words: str) -> None:
    publisher.peer.session.put(frame)
    publisher.peer.talk.settle()
    assert words in failure_of(publisher.peer)


@pytest.mark.parametrize("kind", [Kind.ARENA, Kind.MAPPED, Kind.RELEASE])
def test_who_shares_nothing_must_not_speak_of_it(talk: Talk, kind: Kind) -> None:
    peer = talk.peer()
    peer.put(kind, number=1)
    assert "shares no memory" in failure_of(peer)


@pytest.mark.parametrize(
    ("payload", "total_bytes", "flags", "words"),
    [
        (PLACE.pack(2, 1, 0), 10, 0, "10 bytes at 0 of arena 2"),
        (PLACE.pack(1, 1, SIZE - 9), 10, 0, f"10 bytes at {SIZE - 9} of arena 1"),
        (PLACE.pack(1, 1, 1 << 63), 10, 0, "of arena 1"),
        (PLACE.pack(1, 1, 0), MESSAGE_BYTES_MAX, 0, "of arena 1"),
        (PLACE.pack(1, 1, 0), 0, 0, "0 bytes at 0"),
        (b"short", 10, 0, "whose place has 5 bytes"),
        (PLACE.pack(1, 1, 0), 10, Flag.CHUNKED, "also a batch or in chunks"),
    ],
)
def test_places_that_are_none_end_the_session_of_their_publisher_alone(
    talk: Talk, publisher: Sharer, payload: bytes, total_bytes: int, flags: int, words: str
) -> None:
    other = talk.peer()
    other.subscribe("a")
    publisher.peer.publish("a", payload, Flag.SHARED | flags, total_bytes=total_bytes)
    assert words in failure_of(publisher.peer)
    assert other.is_open
    assert other.frames[-1].kind == Kind.DONE


def test_a_loan_in_use_cannot_be_lent_again(publisher: Sharer, reader: Sharer) -> None:
    publisher.publish("a", b"x")
    publisher._loans -= 1
    publisher.publish("a", b"y")
    assert "loan 2 is in use" in failure_of(publisher.peer)


def test_a_message_where_nothing_is_shared_ends_the_session(talk: Talk) -> None:
    peer = talk.peer()
    peer.publish("a", PLACE.pack(1, 1, 0), Flag.SHARED, total_bytes=10)
    assert "where none is shared" in failure_of(peer)


# The end of sessions and arenas.


def test_the_end_of_the_publisher_takes_nothing_from_its_readers(publisher: Sharer, reader: Sharer) -> None:
    publisher.publish("a", b"x")
    publisher.publish("a", b"y")
    publisher.peer.die()
    leases = reader.leases()
    assert len(leases) == 2
    assert [frame for frame in reader.peer.all_of(Kind.ARENA) if frame.flags & Flag.LAST] == []
    reader.release(leases[0])
    assert reader.peer.all_of(Kind.ARENA) == []
    reader.release(leases[1])
    gc.collect()
    reader.peer.talk.settle()
    (end,) = reader.peer.all_of(Kind.ARENA)
    assert end.flags == Flag.LAST


def test_an_arena_that_its_publisher_ends_is_forgotten_when_nothing_in_it_is_lent(
    publisher: Sharer, reader: Sharer
) -> None:
    loan = publisher.publish("a", b"x")
    publisher.peer.put(Kind.ARENA, Flag.LAST, number=1, lane=Lane.CONTROL)
    assert reader.peer.all_of(Kind.ARENA) == []
    reader.release(*reader.leases())
    assert publisher.back() == [loan]
    assert [frame.flags for frame in reader.peer.all_of(Kind.ARENA)] == [Flag.LAST]


def test_arenas_count_until_nothing_in_them_is_lent(publisher: Sharer, reader: Sharer) -> None:
    mapped = []
    while all(mapped):
        publisher.publish("a", b"x")
        if reader.peer.all_of(Kind.ARENA):
            reader.read(1)
            reader.peer.frames = [frame for frame in reader.peer.frames if frame.kind != Kind.ARENA]
        publisher.peer.put(Kind.ARENA, Flag.LAST, number=1, lane=Lane.CONTROL)
        publisher.passage.arrived[77] = publisher.memory
        publisher.peer.put(Kind.ARENA, number=1, count=1, total_bytes=SIZE, sequence=77, lane=Lane.CONTROL)
        mapped.append(publisher.peer.all_of(Kind.MAPPED)[-1].count)
    assert len(mapped) == ARENAS_MAX
    reader.release(*reader.leases())
    assert len(publisher.back()) == ARENAS_MAX
    publisher.passage.arrived[77] = publisher.memory
    publisher.peer.put(Kind.ARENA, number=1, count=1, total_bytes=SIZE, sequence=77, lane=Lane.CONTROL)
    assert publisher.peer.all_of(Kind.MAPPED)[-1].count == 1


def test_arenas_of_a_publisher_are_bounded_in_bytes_together(talk: Talk) -> None:
    sharer = Sharer(talk)
    for number, size_bytes in enumerate([ARENAS_BYTES_MAX - SIZE, SIZE, 4096], start=1):
        sharer.passage.arrived[number] = memory = FakeMemory(number, 0)
        memory.size_bytes = size_bytes
        sharer.peer.put(Kind.ARENA, number=number, count=1, total_bytes=size_bytes, sequence=number)
    assert [frame.count for frame in sharer.peer.all_of(Kind.MAPPED)] == [1, 1, 0]
    sharer.peer.put(Kind.ARENA, Flag.LAST, number=2, lane=Lane.CONTROL)
    sharer.passage.arrived[3] = memory
    sharer.peer.put(Kind.ARENA, number=3, count=1, total_bytes=4096, sequence=3)
    assert sharer.peer.all_of(Kind.MAPPED)[-1].count == 1


@pytest.mark.parametrize("size_bytes", [SIZE // 4, SIZE // 2], ids=["little", "much"])
def test_what_is_little_of_an_arena_is_copied_when_its_publisher_has_gone(
    talk: Talk, publisher: Sharer, size_bytes: int
) -> None:
    publisher.peer.put(Kind.DECLARE, body=Declare("kept", ring_messages=1, ring_bytes=2 * SIZE), target=1)
    payload = bytes([7]) * size_bytes
    publisher.publish("kept", payload)
    memory = weakref.ref(publisher.memory)
    publisher.passage = publisher.memory = None
    talk.state.sessions[publisher.peer.record.id].session.passage = None
    publisher.peer.die()
    gc.collect()
    assert (memory() is None) == (size_bytes == SIZE // 4)
    late = talk.peer()
    late.subscribe("kept", replay="all")
    assert late.large() == [payload]


def test_who_was_not_told_of_an_arena_before_its_end_gets_chunks(talk: Talk, publisher: Sharer) -> None:
    publisher.peer.put(Kind.DECLARE, body=Declare("kept", ring_messages=1, ring_bytes=2 * SIZE), target=1)
    publisher.publish("kept", bytes(SIZE))
    publisher.peer.die()
    late = Sharer(talk, "late")
    late.peer.subscribe("kept", replay="all")
    assert late.peer.all_of(Kind.ARENA) == []
    assert late.peer.large() == [bytes(SIZE)]


def test_a_reader_keeps_what_it_reads_when_the_rest_of_an_arena_was_copied(
    talk: Talk, publisher: Sharer, reader: Sharer
) -> None:
    publisher.publish("a", b"x")
    memory = weakref.ref(publisher.memory)
    publisher.passage = publisher.memory = None
    publisher.peer.record.session.passage = None
    publisher.peer.die()
    reader.passage.given.clear()
    gc.collect()
    # The broker needs it no more; the reader has mapped it itself.
    assert memory() is None
    assert [frame for frame in reader.peer.all_of(Kind.ARENA) if frame.flags & Flag.LAST] == []
    reader.release(*reader.leases())
    assert [frame.flags for frame in reader.peer.all_of(Kind.ARENA)] == [Flag.LAST]


def test_the_broker_keeps_nothing_of_sessions_that_are_gone(talk: Talk, publisher: Sharer, reader: Sharer) -> None:
    for _ in range(3):
        publisher.publish("a", b"x" * 1000)
    arena = next(iter(reader.peer.record.shares._known))
    reader.peer.die()
    publisher.peer.die()
    gc.collect()
    assert arena.loans == 0
    assert arena.readers == set()
    assert arena.owner is None


def test_without_memory_for_a_copy_what_is_retained_stays_where_it_is(
    talk: Talk, publisher: Sharer, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, failures = publisher.memory, [MemoryError()]

    def view(offset: int, size_bytes: int, holder: object) -> memoryview:
        if failures:
            raise failures.pop()
        return FakeMemory.view(memory, offset, size_bytes, holder)

    monkeypatch.setattr(memory, "view", view)
    publisher.peer.put(Kind.DECLARE, body=Declare("kept", ring_messages=1, ring_bytes=2 * SIZE), target=1)
    publisher.publish("kept", b"here")
    publisher.peer.die()
    assert not failures
    late = Sharer(talk, "late")
    late.peer.subscribe("kept", replay="all")
    assert late.peer.large() == [b"here"]


def test_loans_count_until_their_publisher_has_been_told_of_their_end(
    publisher: Sharer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.state.sharing.LOANS_MAX", 10)
    for _ in range(30):
        publisher.publish("nowhere", b"x", lane=Lane.CONTROL)
    assert publisher.back() == list(range(1, 31))
    publisher.peer.reading = False
    for _ in range(10):
        publisher.publish("nowhere", b"x", lane=Lane.CONTROL)
    assert publisher.peer.is_open
    publisher.publish("nowhere", b"x", lane=Lane.CONTROL)
    assert "loan 41 is in use, or 10 are" in str(publisher.peer.record.session.failure)


def test_arenas_leave_descriptors_for_connections() -> None:
    talk = Talk(arena_descriptor_max=50)
    sharer = Sharer(talk)
    sharer.memory.descriptor = 51
    sharer.peer.put(Kind.ARENA, number=1, count=1, total_bytes=SIZE, sequence=77)
    assert [frame.count for frame in sharer.peer.all_of(Kind.MAPPED)] == [0]
    sharer.memory.descriptor = 50
    sharer.passage.arrived[77] = sharer.memory
    sharer.peer.put(Kind.ARENA, number=1, count=1, total_bytes=SIZE, sequence=77)
    assert [frame.count for frame in sharer.peer.all_of(Kind.MAPPED)] == [0, 1]
