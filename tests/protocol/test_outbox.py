"""Lanes: what goes first, who takes turns, and what is counted."""

from __future__ import annotations

from broker.buffers import Buffer
from broker.limits import CHUNK_BYTES
from broker.protocol.frames import HEADER, HEADER_BYTES, Frame, Kind, Lane, encode
from broker.protocol.outbox import BUFFERS_MAX, Outbox


class Chunks:
    """A source of a number of chunks."""

    def __init__(self, name: int, count: int, lane: int = Lane.BULK, size: int = 0) -> None:
        self.name, self.count, self.lane, self.size = name, count, lane, size

    def pull(self, buffers: list[Buffer]) -> int:
        if not self.count:
            return 0
        self.count -= 1
        return encode(Frame(Kind.CHUNK, lane=self.lane, number=self.name, payload=bytes(self.size)), buffers)


def flush(number: int, lane: int = Lane.DEFAULT, size: int = 0) -> Frame:
    return Frame(Kind.FLUSH, lane=lane, number=number, payload=bytes(size))


def taken(outbox: Outbox, budget_bytes: int = 1 << 30) -> list[int]:
    """The numbers of the frames of one write."""
    buffers: list[Buffer] = []
    size = outbox.take(budget_bytes, buffers)
    assert size == sum(len(buffer) for buffer in buffers)
    return [HEADER.unpack_from(buffer)[4] for buffer in buffers if len(buffer) == HEADER_BYTES]


def test_lanes_go_in_their_order_and_frames_of_a_lane_in_theirs() -> None:
    outbox = Outbox()
    for number, lane in enumerate((2, 1, 0, 2, 1, 0)):
        outbox.put(flush(number, lane))
    assert taken(outbox) == [2, 5, 1, 4, 0, 3]
    assert not outbox


def test_a_control_frame_goes_between_the_chunks_of_a_message_that_has_started() -> None:
    outbox = Outbox()
    outbox.attach(Chunks(7, 4, size=CHUNK_BYTES), Lane.BULK)
    assert taken(outbox, CHUNK_BYTES) == [7]
    outbox.put(flush(1, Lane.CONTROL))
    outbox.put(flush(2, Lane.DEFAULT))
    assert taken(outbox, CHUNK_BYTES) == [1, 2, 7]
    assert taken(outbox, CHUNK_BYTES) == [7]


def test_sources_of_a_lane_take_turns() -> None:
    outbox = Outbox()
    for name, count in ((1, 3), (2, 1), (3, 2)):
        outbox.attach(Chunks(name, count), Lane.BULK)
    assert taken(outbox) == [1, 2, 3, 1, 3, 1]
    assert not outbox


def test_a_ready_frame_waits_for_one_turn_of_the_sources_of_its_lane() -> None:
    outbox = Outbox()
    outbox.attach(Chunks(1, 3, Lane.DEFAULT), Lane.DEFAULT)
    outbox.put(flush(9))
    assert taken(outbox) == [1, 9, 1, 1]


def test_a_source_that_has_nothing_is_taken_out_and_may_come_back() -> None:
    outbox = Outbox()
    source = Chunks(1, 0)
    outbox.attach(source, Lane.BULK)
    assert taken(outbox) == []
    assert not outbox
    source.count = 1
    outbox.attach(source, Lane.BULK)
    assert taken(outbox) == [1]


def test_a_frame_that_is_put_while_a_source_is_asked_is_not_lost() -> None:
    outbox = Outbox()

    class Telling(Chunks):
        def pull(self, buffers: list[Buffer]) -> int:
            outbox.put(flush(50 + self.count, Lane.CONTROL))
            return super().pull(buffers)

    outbox.attach(Telling(1, 1), Lane.BULK)
    assert taken(outbox) == [1]
    assert taken(outbox) == [51, 50]
    assert not outbox


def test_a_write_ends_at_its_budget_or_when_it_has_too_many_buffers() -> None:
    outbox = Outbox()
    for number in range(3000):
        outbox.put(flush(number))
    assert taken(outbox, 10 * HEADER_BYTES) == list(range(10))
    assert len(taken(outbox)) == BUFFERS_MAX
    assert taken(outbox)[0] == 10 + BUFFERS_MAX


def test_queued_bytes_are_those_of_ready_frames_and_control_bytes_those_of_their_lane() -> None:
    outbox = Outbox()
    assert (outbox.queued_bytes, outbox.control_bytes) == (0, 0)
    outbox.put(flush(1, Lane.CONTROL, 10))
    outbox.put(Frame(Kind.TOPIC, body=b"12345", payload=memoryview(b"abc")))
    outbox.attach(Chunks(1, 1), Lane.BULK)
    assert (outbox.queued_bytes, outbox.control_bytes) == (2 * HEADER_BYTES + 18, HEADER_BYTES + 10)
    taken(outbox)
    assert (outbox.queued_bytes, outbox.control_bytes) == (0, 0)


def test_clear_forgets_everything() -> None:
    outbox = Outbox()
    outbox.put(flush(1, Lane.CONTROL, 10))
    outbox.attach(Chunks(1, 1), Lane.BULK)
    outbox.clear()
    assert not outbox
    assert (outbox.queued_bytes, outbox.control_bytes, taken(outbox)) == (0, 0, [])
    assert repr(outbox) == "<Outbox control=0 default=0 bulk=0>"


def test_what_waits_is_counted_whoever_it_is() -> None:
    outbox = Outbox()
    outbox.put(flush(1))
    outbox.attach(Chunks(2, 2), Lane.BULK)
    assert outbox.waiting == 2
    assert taken(outbox, 1) == [1]
    assert outbox.waiting == 1
    assert taken(outbox) == [2, 2]
    assert outbox.waiting == 0
