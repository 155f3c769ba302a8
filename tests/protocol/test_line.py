"""Lines: what a publisher writes is read once by each reader and by the broker, in order, whoever stops or lies."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidValue, ProtocolError
from broker.protocol.frames import Frame, Kind, pack_header
from broker.protocol.line import (
    AVAILABLE,
    CLOSED,
    DATA_OFFSET,
    EJECTED,
    NO_ROOM,
    NOTHING,
    PLACE_BYTES,
    READERS_MAX,
    TAKEN,
    Drain,
    End,
    Reader,
    Writer,
    format_ring,
)
from broker.transport.shared_memory import SharedMemory

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")

SMALL_BYTES = 4096
Kind_ = TypeVar("Kind_", bound=End)


class Whole:
    """A line with all its ends in this process."""

    def __init__(self, readers: int = 1, data_bytes: int = SMALL_BYTES) -> None:
        self.ring = SharedMemory.create(DATA_OFFSET + data_bytes, common=True)
        format_ring(self.ring.address, self.ring.size_bytes)
        self.places = [SharedMemory.create(PLACE_BYTES, common=True) for _ in range(readers)]
        self.writer = self.end(Writer, self.places)
        self.drain = self.end(Drain, self.places)
        self.readers = [self.end(Reader, [place]) for place in self.places]

    def end(self, kind: type[Kind_], places: list[SharedMemory]) -> Kind_:
        end = kind(self.ring, self.ring.address, self.ring.size_bytes)
        for place in places:
            end.add(place, place.address)
        return end

    def put(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self.ring.address + offset, data, len(data))

    @property
    def head(self) -> int:
        return ctypes.c_uint64.from_address(self.ring.address + 128).value


def header(payload: bytes, body: bytes = b"", number: int = 1) -> bytes:
    return pack_header(int(Kind.PUBLISH), 0, 1, 0, number, 0, 0, 0, len(body), len(payload), 0, 0, 5)


def write(line: Whole, payload: bytes, body: bytes = b"") -> int:
    return line.writer.write(header(payload, body), body, payload)


def take(end: Reader | Drain) -> bytes | int:
    frame = Frame(0)
    found = end.take(frame)
    return frame.payload if found == TAKEN else found


def test_an_entry_comes_out_as_the_frame_that_went_in() -> None:
    line, frame = Whole(), Frame(0)
    assert write(line, b"payload", b"body") == 0
    assert line.readers[0].take(frame) == TAKEN
    assert frame == Frame(Kind.PUBLISH, lane=1, number=1, time_ns=5, body=b"body", payload=b"payload")
    assert line.readers[0].take(frame) == NOTHING


def test_every_reader_and_the_broker_get_everything_once() -> None:
    line = Whole(readers=3)
    for number in range(5):
        write(line, bytes([number]))
    for end in (*line.readers, line.drain):
        assert [take(end) for _ in range(6)] == [b"\0", b"\1", b"\2", b"\3", b"\4", NOTHING]


@pytest.mark.parametrize("slow", ["the broker", "a reader"])
def test_who_is_slow_holds_room_and_gives_it_back(slow: str) -> None:
    line, written = Whole(readers=2), 0
    while write(line, bytes(100)) != NO_ROOM:
        written += 1
    assert written == SMALL_BYTES // 160
    for end in (line.drain, line.readers[0], line.readers[1]):
        if end is not (line.drain if slow == "the broker" else line.readers[1]):
            while take(end) != NOTHING:
                pass
    if slow != "the broker":
        line.drain.drained()
    assert write(line, bytes(100)) == NO_ROOM
    assert take(line.drain if slow == "the broker" else line.readers[1]) == bytes(100)
    line.drain.drained()
    assert write(line, bytes(100)) == 0


def test_an_entry_of_more_than_half_the_ring_has_no_room() -> None:
    line = Whole()
    assert write(line, bytes(SMALL_BYTES // 2)) == NO_ROOM
    assert write(line, bytes(SMALL_BYTES // 2 - 60)) == 0


def test_what_was_committed_before_the_closing_counts_and_nothing_after_it() -> None:
    line = Whole()
    write(line, b"before")
    final = line.drain.close()
    assert write(line, b"after") == CLOSED
    assert final == line.writer.position
    assert line.drain.closed
    assert [take(line.drain), take(line.drain)] == [b"before", NOTHING]


def test_an_ejected_reader_takes_nothing_more_and_the_broker_knows_what_it_had() -> None:
    line = Whole(readers=2)
    write(line, b"1")
    assert take(line.readers[0]) == b"1"
    behind_first = line.writer.position
    write(line, b"2")
    assert [line.drain.eject(0), line.drain.eject(1)] == [behind_first, 0]
    assert [take(reader) for reader in line.readers] == [EJECTED, EJECTED]
    assert not line.readers[0].has_more()
    assert line.drain.taken(0) == -1


def test_a_publisher_that_stops_in_the_middle_has_published_nothing() -> None:
    line = Whole()
    write(line, b"1")
    # As far as an entry, without the exchange.
    line.put(DATA_OFFSET + line.writer.position % SMALL_BYTES, b"\x40\0\0\0\x52\x54\x4e\x7f" + header(b"x") + b"x")
    assert [take(line.drain), take(line.drain)] == [b"1", NOTHING]
    assert line.drain.close() == line.writer.position


def test_only_sleepers_are_woken_and_each_once() -> None:
    line = Whole(readers=3)
    line.readers[0].sleeps(True)
    line.readers[2].sleeps(True)
    assert write(line, b"1") == 0b101
    assert write(line, b"2") == 0
    line.readers[1].sleeps(True)
    assert line.readers[1].has_more()
    line.readers[1].sleeps(False)
    assert write(line, b"3") == 0


@pytest.mark.parametrize(
    "front",
    [
        b"\0\0\0\0\x52\x54\x4e\x7f",
        b"\x41\0\0\0\x52\x54\x4e\x7f",
        b"\x38\0\0\0\x52\x54\x4e\x7f",
        b"\xf8\xff\xff\xff\x52\x54\x4e\x7f",
        b"\x40\0\0\0\0\0\0\0",
        b"\x40\0\0\0\x50\x41\x44\x7f",
        b"\x48\0\0\0\x52\x54\x4e\x7f",
    ],
    ids=["no size", "odd size", "too short", "too long", "no mark", "pad in the middle", "size of another frame"],
)
def test_what_is_no_entry_is_refused(front: bytes) -> None:
    line = Whole()
    write(line, b"abcd")
    line.put(DATA_OFFSET, front)
    for end in (line.drain, line.readers[0]):
        with pytest.raises(ProtocolError, match="no frame"):
            take(end)
    assert line.drain.taken(0) == 0


@pytest.mark.parametrize("lengths", [(2**32 - 1, 5), (0, 2**32 - 1), (2**31, 2**31 + 4)])
def test_lengths_in_a_header_are_not_followed(lengths: tuple[int, int]) -> None:
    line = Whole()
    write(line, b"abcd")
    body_bytes, payload_bytes = lengths
    line.put(DATA_OFFSET + 8 + 20, body_bytes.to_bytes(4, "little") + payload_bytes.to_bytes(4, "little"))
    with pytest.raises(ProtocolError, match="no frame"):
        take(line.drain)


@pytest.mark.parametrize("head", [1 << 40, SMALL_BYTES + 8, 4])
def test_a_head_that_cannot_be_is_not_followed(head: int) -> None:
    line = Whole()
    line.put(128, (head << 1).to_bytes(8, "little"))
    write(line, b"does not count")
    with pytest.raises(ProtocolError, match="no frame"):
        take(line.drain)


@pytest.mark.parametrize("taken", [0, 3, 8, 1 << 62])
def test_a_place_that_lies_holds_up_or_misplaces_only_itself(taken: int) -> None:
    line = Whole(readers=2)
    while write(line, bytes(100)) != NO_ROOM:
        pass
    ctypes.c_uint64.from_address(line.places[0].address).value = taken << 1
    while take(line.drain) != NOTHING:
        pass
    line.drain.drained()
    while take(line.readers[1]) != NOTHING:
        pass
    assert write(line, bytes(100)) in (0, NO_ROOM)
    line.drain.close()
    line.drain.eject(0)
    assert line.drain.eject(1) == line.head >> 1 or write(line, b"") == CLOSED


def test_memory_that_is_no_ring_is_refused() -> None:
    memory = SharedMemory.create(DATA_OFFSET + SMALL_BYTES, common=True)
    with pytest.raises(InvalidValue, match="no line"):
        Writer(memory, memory.address, memory.size_bytes)
    format_ring(memory.address, memory.size_bytes)
    with pytest.raises(InvalidValue, match="no line"):
        Writer(memory, memory.address, memory.size_bytes - 8)


def test_there_are_not_more_readers_than_places() -> None:
    line = Whole(readers=READERS_MAX)
    place = SharedMemory.create(PLACE_BYTES, common=True)
    with pytest.raises(InvalidValue, match="readers of a line"):
        line.writer.add(place, place.address)
    with pytest.raises(InvalidValue, match="none of this line"):
        line.drain.eject(READERS_MAX)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1500)),
        st.tuples(st.just("take"), st.integers(0, 2)),
        st.tuples(st.just("drain"), st.integers(0, 9)),
    ),
    max_size=120,
)


@given(steps, st.integers(0, 3))
def test_whatever_happens_each_message_reaches_each_reader_once(steps: list[tuple[str, int]], ejected: int) -> None:
    line, sent = Whole(readers=3), []
    got: list[list[object]] = [[], [], []]
    drained: list[object] = []
    for what, number in steps:
        if what == "write":
            payload = len(sent).to_bytes(4, "little") + bytes(number)
            if write(line, payload) >= 0:
                sent.append(payload)
        elif what == "take":
            if isinstance(payload_or_none := take(line.readers[number]), bytes):
                got[number].append(payload_or_none)
        else:
            for _ in range(number):
                if isinstance(payload_or_none := take(line.drain), bytes):
                    drained.append(payload_or_none)
            line.drain.drained()
    final = line.drain.close()
    positions = [line.drain.eject(reader) for reader in range(3)]
    while isinstance(payload_or_none := take(line.drain), bytes):
        drained.append(payload_or_none)
    assert drained == sent
    for mine, position in zip(got, positions, strict=True):
        assert mine == sent[: len(mine)]
        assert position <= final
    assert [take(reader) for reader in line.readers] == [EJECTED] * 3


def test_a_writer_and_readers_on_threads_that_are_closed_in_the_middle_agree() -> None:
    """Every message is read by each reader or left to the broker, never both, whatever moment the closing comes at."""
    for round_ in range(8):
        line = Whole(readers=2)
        committed: list[int] = []
        got: list[list[int]] = [[], []]
        goes = threading.Barrier(4)

        def write_all(line: Whole = line, committed: list[int] = committed, goes: threading.Barrier = goes) -> None:
            goes.wait()
            number = 0
            while True:
                said = write(line, number.to_bytes(4, "little"))
                if said == CLOSED or (said == NO_ROOM and line.drain.closed):
                    return
                if said >= 0:
                    committed.append(number)
                    number += 1

        def read_all(mine: int, line: Whole = line, got: list[list[int]] = got, goes: threading.Barrier = goes) -> None:
            goes.wait()
            while (payload := take(line.readers[mine])) != EJECTED:
                if isinstance(payload, bytes):
                    got[mine].append(int.from_bytes(payload, "little"))

        threads = [threading.Thread(target=write_all), *(threading.Thread(target=read_all, args=(i,)) for i in (0, 1))]
        for thread in threads:
            thread.start()
        goes.wait()
        drained: list[tuple[int, int]] = []

        def drain(line: Whole = line, drained: list[tuple[int, int]] = drained) -> None:
            while isinstance(payload := take(line.drain), bytes):
                drained.append((line.drain.position, int.from_bytes(payload, "little")))
            line.drain.drained()

        while len(drained) < round_ * 20:
            drain()
        line.drain.close()
        drain()
        positions = [line.drain.eject(reader) for reader in (0, 1)]
        for thread in threads:
            thread.join()
        assert [number for _, number in drained] == committed
        for mine, position in zip(got, positions, strict=True):
            assert mine == [number for behind, number in drained if behind <= position]


def test_a_writer_in_another_process_that_is_killed_loses_nothing_that_it_has_committed() -> None:
    line = Whole(data_bytes=1 << 16)
    told, tells = os.pipe()
    child = os.fork()
    if not child:
        try:
            number = 0
            while True:
                if write(line, number.to_bytes(4, "little")) >= 0:
                    number += 1
                    if number == 100:
                        os.write(tells, b"x")
        finally:
            os._exit(1)
    try:
        assert os.read(told, 1) == b"x"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tells)
    final = line.drain.close()
    count = 0
    while isinstance(payload := take(line.drain), bytes):
        assert int.from_bytes(payload, "little") == count
        count += 1
    assert count >= 100
    assert line.drain.position == final
