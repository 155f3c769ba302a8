"""One conversation: the bytes that go out, and its end."""

from __future__ import annotations

import struct
import weakref

import pytest

from broker.buffers import Buffer
from broker.errors import ConnectionClosed, ProtocolError
from broker.limits import (
    CHUNK_BYTES,
)
from broker.protocol.codes import Code
from broker.protocol.frames import HEADER, HEADER_BYTES, Frame, Kind, Lane, encode
from broker.protocol.session import Event, Phase, Session
from tests.protocol.helpers import opened, pair, read, sent_by, session
from tests.protocol.test_session import sample, wire

# Bytes out.


def test_partial_sends_at_every_position_lose_and_repeat_nothing() -> None:
    frames = [
        Frame(Kind.FLUSH, target=1),
        Frame(Kind.TOPIC, number=1, body=b"\x81\xa4name\xa1a"),
        Frame(Kind.PUBLISH, number=1, payload=b"0123456789"),
        Frame(Kind.PUBLISH, number=1, body=b"\x80", payload=memoryview(b"abcdef")),
    ]
    expected = wire(*frames)
    for cut in range(1, len(expected)):
        client, _ = pair()
        for frame in frames:
            client.put(frame)
        data, size = b"", cut
        while buffers := client.to_send():
            part = b"".join(bytes(buffer) for buffer in buffers)[:size]
            done = client.sent(len(part))
            data += part
            assert done is (len(data) == len(expected) or not client.unsent)
            size = 10_000
        assert data == expected, cut


def test_a_link_that_takes_one_byte_at_a_time_gets_everything() -> None:
    client, broker = pair()
    frames, data = sample()
    for frame in frames:
        client.put(frame)
    found: list[object] = []
    count = 0
    while buffers := client.to_send():
        found += read(broker, bytes(buffers[0][:1]))
        client.sent(1)
        count += 1
    assert found == frames
    assert count == len(data)


def test_a_link_that_takes_nothing_is_offered_the_same_again() -> None:
    client, _ = pair()
    client.put(Frame(Kind.FLUSH))
    before = b"".join(client.to_send())
    assert client.sent(0) is False
    assert b"".join(client.to_send()) == before


def test_a_write_is_about_as_long_as_its_budget() -> None:
    client, _ = pair()
    for _ in range(10):
        client.put(Frame(Kind.CHUNK, payload=bytes(CHUNK_BYTES)))
    assert sum(len(buffer) for buffer in client.to_send()) == CHUNK_BYTES + HEADER_BYTES


def test_stream_numbers_differ_and_are_never_zero() -> None:
    client, _ = pair()
    assert [client.next_stream() for _ in range(3)] == [1, 2, 3]
    client._last_stream = 0xFFFFFFFE
    assert [client.next_stream() for _ in range(2)] == [0xFFFFFFFF, 1]


def test_a_frame_that_passes_the_outbox_by_leaves_before_what_is_queued_after_it() -> None:
    client, broker = pair()
    broker.unsent_bytes += encode(Frame(Kind.DONE, target=1), broker.unsent)
    broker.put(Frame(Kind.DONE, target=2))
    assert broker.has_unsent()
    assert [frame.target for frame in read(client, sent_by(broker))] == [1, 2]
    assert not broker.has_unsent()


def test_a_flush_goes_on_until_the_link_takes_no_more() -> None:
    client, broker = pair()
    for target in range(1, 200):
        broker.put(Frame(Kind.DONE, target=target))
    seen: list[bytes] = []

    def link(buffers: list[Buffer]) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)
        room = 5000 - sum(len(part) for part in seen)
        seen.append(data[:room])
        return min(room, len(data))

    assert broker.flush(link) is False
    rest: list[bytes] = []

    def endless(buffers: list[Buffer]) -> int:
        rest.append(b"".join(bytes(buffer) for buffer in buffers))
        return len(rest[-1])

    assert broker.flush(endless) is True
    assert not broker.has_unsent()
    frames = read(client, b"".join(seen + rest))
    assert [frame.target for frame in frames] == list(range(1, 200))


# Closing.


def test_an_orderly_close_sends_everything_that_is_queued_first() -> None:
    client, broker = pair()
    for number in range(2000):
        client.put(Frame(Kind.FLUSH, lane=Lane.BULK, target=number))
    client.close(Code.NORMAL, "work is done")
    assert client.phase is Phase.CLOSING
    assert client.has_unsent()
    found = read(broker, sent_by(client))
    assert [frame.target for frame in found] == list(range(2000))
    assert client.phase is broker.phase is Phase.CLOSED
    assert (broker.failure.code, broker.failure.reason) == (Code.NORMAL, "work is done")
    assert not client.has_unsent()


def test_a_fault_drops_what_is_queued_but_not_what_the_link_has_begun() -> None:
    client, broker = pair()
    for number in range(3):
        broker.put(Frame(Kind.DONE, target=number, payload=bytes(100)))
    first = broker.to_send(budget_bytes=1)
    broker.sent(10)
    start = b"".join(bytes(buffer) for buffer in first)[:10]
    broker.fail(ProtocolError("bad frame"))
    found = read(client, start + sent_by(broker))
    assert [frame.target for frame in found] == [0]
    assert client.failure.code == Code.PROTOCOL
    assert "bad frame" in client.failure.reason
    assert broker.phase is Phase.CLOSED


def test_the_first_cause_stays() -> None:
    _, broker = pair()
    broker.fail(ProtocolError("first"))
    broker.close(Code.NORMAL, "second")
    broker.fail(ProtocolError("third"))
    broker.lost(ConnectionClosed("fourth"))
    assert str(broker.failure) == "first"
    assert broker.phase is Phase.CLOSED


def test_a_lost_link_forgets_what_was_queued() -> None:
    client, _ = pair()
    client.put(Frame(Kind.FLUSH))
    client.lost(ConnectionClosed("reset"))
    assert (client.phase, client.has_unsent(), client.to_send()) == (Phase.CLOSED, False, [])


def test_a_lost_session_holds_no_memory_of_what_was_under_way() -> None:
    given_out: list[weakref.ref[memoryview]] = []

    def allocate(frame: Frame, size_bytes: int) -> memoryview:
        memory = memoryview(bytearray(size_bytes))
        given_out.append(weakref.ref(memory))
        return memory

    broker = opened(allocate=allocate)
    read(broker, wire(Frame(Kind.PUBLISH, payload=bytes(20_000)))[:10_000])
    sending = memoryview(bytearray(20_000))
    given_out.append(weakref.ref(sending))
    broker.put(Frame(Kind.DELIVER, payload=sending))
    broker.to_send()
    broker.sent(100)
    del sending
    broker.lost(ConnectionClosed("reset"))
    assert [memory() for memory in given_out] == [None, None]


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_a_closed_session_stays_closed_and_no_session_opens_twice(phase: Phase, event: Event) -> None:
    its: Session = session()
    its.phase = phase
    its._move(event, None)
    if phase is Phase.CLOSED:
        assert its.phase is Phase.CLOSED
    if its.phase is Phase.OPEN:
        assert phase is Phase.OPEN or (phase, event) == (Phase.AWAIT_HELLO, Event.OPENED)


def test_a_malformed_close_is_a_fault() -> None:
    _, broker = pair()
    read(broker, wire(Frame(Kind.CLOSE, body=b"\xc1")))
    assert isinstance(broker.failure, ProtocolError)


def test_repr_is_a_line_for_the_log() -> None:
    client, _ = pair()
    client.put(Frame(Kind.FLUSH))
    assert repr(client).startswith("<Session OPEN received=")
    assert "\n" not in repr(client)


def test_a_pong_echoes_what_the_ping_carried() -> None:
    client, broker = pair()
    read(broker, wire(Frame(Kind.PING, sequence=3, time_ns=4)))
    data = sent_by(broker)
    assert HEADER.unpack(data)[0] == Kind.PONG
    assert struct.unpack_from("<2Q", data, 36) == (3, 4)
    assert read(client, data) == []
