"""What a client makes of frames that a faulty publisher caused."""

from __future__ import annotations

import pytest

from broker.errors import ProtocolError
from broker.protocol.bodies import Subscribe, Topic, encode_body
from broker.protocol.frames import Content, Flag, Frame, Kind
from clients.reading.incoming import Incoming
from clients.reading.messages import Message, Publication
from clients.reading.subscription_state import SubscriptionState
from tests.clients.recording import Recording


def incoming() -> tuple[Incoming, SubscriptionState]:
    subject = Incoming(lambda request, answer: None, lambda message: None, lambda delivery, **how: None)
    subscription = SubscriptionState(1, Subscribe("t"))
    subject.subscriptions[1] = subscription
    subject.topic(Frame(Kind.TOPIC, number=1, body=encode_body(Topic("t", "somebody"))))
    return subject, subscription


@pytest.mark.parametrize("total_bytes", [1 << 62, (1 << 64) - 1])
def test_a_message_that_no_memory_holds_is_dropped_and_its_successor_arrives(total_bytes: int) -> None:
    subject, subscription = incoming()
    subject.deliver(Frame(Kind.DELIVER, Flag.CHUNKED, number=1, target=1, stream=7, total_bytes=total_bytes))
    for flags in (0, Flag.LAST):
        memory = subject.allocate(Frame(Kind.CHUNK, stream=7), 20_000)
        subject.chunk(Frame(Kind.CHUNK, flags, stream=7, payload=memory))
    subject.deliver(Frame(Kind.DELIVER, number=1, target=1, content=1, payload=b"next"))
    message = subscription.take()
    assert message is not None
    assert message.value == b"next"
    assert subscription.dropped == 1


def test_a_batch_that_lies_about_its_lengths_is_dropped_and_its_successor_arrives() -> None:
    subject, subscription = incoming()
    lying = b"\x01\x00\x00\x00\xff\xff\x00\x00" + bytes(24)
    subject.deliver(Frame(Kind.DELIVER, Flag.BATCH, number=1, target=1, count=2, payload=lying))
    subject.deliver(Frame(Kind.DELIVER, number=1, target=1, content=1, payload=b"next"))
    message = subscription.take()
    assert message is not None
    assert (message.value, subscription.dropped) == (b"next", 2)


def test_a_damaged_structure_is_unreadable_and_its_successor_is_read() -> None:
    subject, subscription = incoming()
    subject.deliver(Frame(Kind.DELIVER, number=1, target=1, content=Content.STRUCTURE, payload=bytes(100)))
    subject.deliver(Frame(Kind.DELIVER, number=1, target=1, content=1, payload=b"next"))
    damaged, following = subscription.take(), subscription.take()
    assert damaged is not None
    assert following is not None
    with pytest.raises(ProtocolError, match="malformed"):
        _ = damaged.value
    assert following.value == b"next"


def test_a_frame_of_an_unknown_topic_or_stream_is_a_fault_of_the_broker() -> None:
    subject, _ = incoming()
    with pytest.raises(ProtocolError, match="topic number 5"):
        subject.deliver(Frame(Kind.DELIVER, number=5, target=1, payload=b"x"))
    with pytest.raises(ProtocolError, match="stream 9"):
        subject.chunk(Frame(Kind.CHUNK, stream=9))


def test_messages_from_before_a_reconnect_are_never_credited_to_the_new_session() -> None:
    _, subscription = incoming()
    for sequence in range(3):
        subscription.append(a_message(sequence, 200_000))
    subscription.reconnected()
    subscription.chunk_arrived(40 << 20)
    frame = subscription.credit()
    assert frame is not None
    assert (frame.count, frame.total_bytes) == (0, (40 << 20) - 600_000)


def test_what_a_reader_evicts_is_credited_at_once() -> None:
    subject, _ = incoming()
    subject.session = Recording()
    subscription = SubscriptionState(2, Subscribe("t", "drop_oldest", 2))
    subject.subscriptions[2] = subscription
    for _ in range(5):
        subject.deliver(Frame(Kind.DELIVER, number=1, target=2, content=1, payload=b"x"))
    assert sum(frame.count for frame in subject.session.frames) == 3
    assert subscription.pending == 2


def test_chunks_that_no_memory_holds_are_credited() -> None:
    subject, subscription = incoming()
    subject.session = Recording()
    subject.deliver(Frame(Kind.DELIVER, Flag.CHUNKED, number=1, target=1, stream=7, total_bytes=1 << 62))
    for _ in range(100):
        subject.chunk(Frame(Kind.CHUNK, stream=7, payload=bytes(250_000)))
    assert sum(frame.total_bytes for frame in subject.session.frames) > 15_000_000


def a_message(sequence: int, size: int) -> Message:
    return Message(Publication("t", "p"), sequence, 0, 1, 1, b"", bytes(size), None)
