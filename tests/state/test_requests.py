"""Requests and replies on the wire."""

from __future__ import annotations

import pytest

from broker.limits import CHUNK_BYTES
from broker.protocol.bodies import MessageBody, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind
from tests.state.harness import Peer, Talk


def request(talk: Talk, asker: Peer, topic: str, payload: bytes) -> None:
    body = encode_body(MessageBody(reply_to=f"$inbox/{asker.record.id}", request=7))
    asker.publish(topic, payload, Flag.REQUEST, target=7, body=body)


def test_a_request_reaches_the_responder_and_its_reply_the_inbox() -> None:
    talk = Talk()
    asker, responder = talk.peer("asker"), talk.peer("responder")
    responder.subscribe("params/pull", responder=True)
    request(talk, asker, "params/pull", b"?")
    (frame,) = responder.delivered()
    assert frame.flags & Flag.REQUEST
    responder.publish(f"$inbox/{asker.record.id}", b"!")
    (reply,) = asker.delivered(0)
    assert (reply.payload, reply.target, reply.sequence) == (b"!", 0, 1)
    assert asker.names()[reply.number].sender == "responder"
    assert asker.failures() == []


@pytest.mark.parametrize("plain_subscriber", [False, True])
def test_a_request_at_which_nobody_responds_is_answered_with_an_error(plain_subscriber: bool) -> None:
    talk = Talk()
    asker, other = talk.peer(), talk.peer()
    if plain_subscriber:
        other.subscribe("nobody")
    request(talk, asker, "nobody", b"?")
    (frame,) = asker.all_of(Kind.ERROR)
    (failure,) = asker.failures()
    assert (frame.target, failure.code) == (7, Code.NO_RESPONDERS)
    assert "'nobody'" in failure.reason
    assert other.delivered() == []


def test_a_large_request_at_which_nobody_responds_is_answered_and_swallowed() -> None:
    talk = Talk()
    asker, reader = talk.peer(), talk.peer()
    reader.subscribe("nobody")
    stream = asker.open_stream("nobody", 20 * CHUNK_BYTES, Flag.REQUEST, target=7)
    assert [failure.code for failure in asker.failures()] == [Code.NO_RESPONDERS]
    for number in range(1, 21):
        asker.chunk(stream, bytes(CHUNK_BYTES), last=number == 20)
        assert talk.state.held_bytes() <= 2 * CHUNK_BYTES
    assert asker.is_open
    assert reader.delivered() == []
    asker.publish_large("nobody", bytes(2 * CHUNK_BYTES))
    assert reader.large() == [bytes(2 * CHUNK_BYTES)]
    assert reader.sequences() == [1]


def test_a_refused_large_request_can_be_given_up() -> None:
    talk = Talk()
    asker = talk.peer()
    stream = asker.open_stream("nobody", 20 * CHUNK_BYTES, Flag.REQUEST, target=7)
    asker.put(Kind.STREAM_ABORT, stream=stream, body=b"\x82\xa4code\x0c\xa6reason\xa1x")
    asker.publish("nobody", b"x")
    assert asker.is_open


def test_a_refused_request_is_not_acknowledged() -> None:
    talk = Talk()
    asker = talk.peer()
    asker.publish("nobody", b"?", Flag.REQUEST | Flag.ACKNOWLEDGE, target=7)
    asker.publish_large("nobody", bytes(CHUNK_BYTES), Flag.REQUEST | Flag.ACKNOWLEDGE, target=8)
    assert asker.all_of(Kind.DONE) == []
    assert len(asker.all_of(Kind.ERROR)) == 2


def test_a_large_request_with_a_responder_and_a_large_reply_work() -> None:
    talk = Talk()
    asker, responder = talk.peer(), talk.peer()
    responder.subscribe("double", responder=True)
    payload = bytes(range(256)) * 4096
    asker.publish_large("double", payload, Flag.REQUEST, target=7)
    assert responder.large() == [payload]
    assert responder.delivered()[0].flags & Flag.REQUEST
    responder.publish_large(f"$inbox/{asker.record.id}", payload * 2)
    assert asker.large() == [payload * 2]


def test_a_responder_that_has_gone_does_not_count() -> None:
    talk = Talk()
    asker, responder = talk.peer(), talk.peer()
    responder.subscribe("t", responder=True)
    responder.die()
    request(talk, asker, "t", b"?")
    assert [failure.code for failure in asker.failures()] == [Code.NO_RESPONDERS]


def test_responders_in_a_queue_group_share_the_requests() -> None:
    talk = Talk()
    asker, one, two = talk.peer(), talk.peer(), talk.peer()
    for responder in (one, two):
        responder.subscribe("t", responder=True, queue_group="g")
    for _ in range(6):
        request(talk, asker, "t", b"?")
    assert (len(one.delivered()), len(two.delivered())) == (3, 3)


def test_a_flood_of_replies_drops_the_oldest_of_an_inbox_that_is_not_read() -> None:
    talk = Talk(publish_window_messages=1 << 20, publish_window_bytes=1 << 40)
    asker, responder = talk.peer(), talk.peer()
    asker.reading = False
    for _ in range(500):
        responder.publish(f"$inbox/{asker.record.id}", bytes(900_000))
    assert talk.state.held_bytes() <= 70 << 20
    asker.reading = True
    talk.settle()
    assert asker.dropped(0) + len(asker.delivered(0)) == 500
