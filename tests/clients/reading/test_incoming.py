"""What a client makes of frames that a faulty publisher caused."""

from __future__ import annotations

import pytest

from broker.errors import ConnectionClosed, ProtocolError
from broker.protocol.bodies import Subscribe, Topic, encode_body
from broker.protocol.frames import Content, Flag, Frame, Kind, Lane
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


def deliver(subject: Incoming, payload: bytes, *, number: int = 1, target: int = 1, lane: int = Lane.DEFAULT) -> None:
    subject.deliver(Frame(Kind.DELIVER, 0, lane, Content.BYTES, number=number, target=target, payload=payload))


def taken(subscription: SubscriptionState) -> list[tuple[str, object]]:
    messages = iter(subscription.take, None)
    return [(message.topic, message.value) for message in messages]


def test_a_number_that_is_given_anew_means_its_new_topic() -> None:
    subject, subscription = incoming()
    deliver(subject, b"old")
    subject.topic(Frame(Kind.TOPIC, number=2, body=encode_body(Topic("u", "somebody"))))
    deliver(subject, b"other", number=2)
    subject.topic(Frame(Kind.TOPIC, number=2, body=encode_body(Topic("v", "somebody"))))
    deliver(subject, b"new", number=2)
    assert taken(subscription) == [("t", b"old"), ("u", b"other"), ("v", b"new")]


def test_messages_go_to_the_subscription_that_they_name_and_to_none_that_has_ended() -> None:
    subject, first = incoming()
    second = subject.subscriptions[2] = SubscriptionState(2, Subscribe("t"))
    for target in (1, 2, 2, 1):
        deliver(subject, b"to %d" % target, target=target)
    assert (taken(first), taken(second)) == ([("t", b"to 1")] * 2, [("t", b"to 2")] * 2)
    subject.subscriptions.pop(1).close(ConnectionClosed("the subscription is closed"))
    deliver(subject, b"late")
    deliver(subject, b"to 2", target=2)
    assert (taken(first), taken(second)) == ([], [("t", b"to 2")])


def test_a_message_that_waits_alone_lets_a_more_urgent_one_pass() -> None:
    subject, subscription = incoming()
    for round_ in range(2):
        for lane, payload in ((Lane.BULK, b"bulk"), (Lane.DEFAULT, b"default"), (Lane.CONTROL, b"control")):
            deliver(subject, payload, lane=lane)
            assert subscription.pending == 1 + (Lane.BULK - lane), round_
        assert [value for _, value in taken(subscription)] == [b"control", b"default", b"bulk"]
        assert not subscription.ready


def test_a_job_that_waits_alone_is_forgotten_with_its_session() -> None:
    subject, subscription = incoming()
    subject.deliver(Frame(Kind.DELIVER, Flag.TRACKED, number=1, target=1, stream=1, count=1, payload=b"job"))
    assert (subscription.pending, subscription.ready) == (1, True)
    subject.disconnected()
    assert (subscription.pending, subscription.ready, subscription.take()) == (0, False, None)


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
