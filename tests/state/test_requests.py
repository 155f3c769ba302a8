"""Requests and replies on the wire."""

from __future__ import annotations

import pytest

from broker.limits import CHUNK_BYTES
from broker.protocol.bodies import MessageBody, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
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


def test_a_flood_of_replies_to_an_inbox_that_is_not_read_holds_their_publisher_back() -> None:
    talk = Talk(publish_window_messages=32, publish_window_bytes=16 << 20)
    asker, responder = talk.peer(), talk.peer()
    inbox = f"$inbox/{asker.record.id}"
    asker.reading = False
    for _ in range(26):
        responder.publish(inbox, bytes(900_000))
    # What was granted before the inbox was over its bound, and nothing since.
    assert responder.topic_credit(inbox) == (10, 9_000_000)
    asker.reading = True
    talk.settle()
    asker.credit(0, 26, 26 * 900_000)
    assert responder.topic_credit(inbox) == (26, 26 * 900_000)
    assert len(asker.delivered(0)) == 26
    assert asker.dropped(0) == 0


def reply(talk: Talk, responder: Peer, asker: Peer, number: int, flags: int = Flag.LAST) -> None:
    responder.publish(f"$inbox/{asker.record.id}", b"!", flags, sequence=number)


def ask(asker: Peer, topic: str = "t", number: int = 99, flags: int = 0) -> None:
    asker.publish(topic, b"?", Flag.REQUEST | flags, target=7, sequence=number)


def cancels(peer: Peer) -> list[tuple[int, int]]:
    return [(frame.number, frame.sequence) for frame in peer.all_of(Kind.CANCEL)]


def lost(peer: Peer) -> list[tuple[int, int]]:
    """Reference and count of each notice of a lost responder."""
    return [
        (frame.target, frame.count)
        for frame, failure in zip(peer.all_of(Kind.ERROR), peer.failures(), strict=True)
        if failure.code == Code.RESPONDER_LOST
    ]


def trio(**wishes: object) -> tuple[Talk, Peer, Peer, Peer]:
    talk = Talk()
    asker, one, two = talk.peer("asker"), talk.peer("one"), talk.peer("two")
    for responder in (one, two):
        responder.subscribe("t", responder=True, **wishes)
    return talk, asker, one, two


def test_an_acknowledged_request_is_told_how_many_responders_were_asked() -> None:
    talk, asker, _, _ = trio()
    talk.peer().subscribe("t")
    ask(asker, flags=Flag.ACKNOWLEDGE)
    asker.publish_large("t", bytes(CHUNK_BYTES), Flag.REQUEST | Flag.ACKNOWLEDGE, target=8, sequence=100)
    assert [(frame.target, frame.count) for frame in asker.all_of(Kind.DONE)] == [(7, 2), (8, 2)]


def test_of_a_queue_group_one_responder_counts() -> None:
    _, asker, _, _ = trio(queue_group="g")
    ask(asker, flags=Flag.ACKNOWLEDGE)
    assert asker.all_of(Kind.DONE)[0].count == 1


def test_the_first_last_reply_to_a_plain_request_stops_the_other_responders() -> None:
    talk, asker, one, two = trio()
    ask(asker)
    reply(talk, one, asker, 99)
    assert (cancels(one), cancels(two)) == ([], [(asker.record.id, 99)])
    assert len(talk.state.own.requests) == 0


def test_a_request_to_all_is_over_when_each_has_said_the_last_reply() -> None:
    talk, asker, one, two = trio()
    ask(asker, flags=Flag.ACKNOWLEDGE)
    reply(talk, one, asker, 99, 0)
    reply(talk, one, asker, 99)
    reply(talk, one, asker, 99)
    assert len(talk.state.own.requests) == 1
    reply(talk, two, asker, 99)
    assert len(talk.state.own.requests) == 0
    assert cancels(one) == cancels(two) == lost(asker) == []


def test_a_cancelled_request_is_cancelled_at_all_that_have_not_replied() -> None:
    talk, asker, one, two = trio()
    ask(asker, flags=Flag.ACKNOWLEDGE)
    reply(talk, one, asker, 99)
    asker.put(Kind.CANCEL, sequence=99)
    asker.put(Kind.CANCEL, sequence=99)
    assert (cancels(one), cancels(two)) == ([], [(asker.record.id, 99)])
    assert len(talk.state.own.requests) == 0


def test_nobody_can_cancel_anothers_request() -> None:
    talk, asker, one, two = trio()
    ask(asker)
    two.put(Kind.CANCEL, sequence=99)
    assert cancels(one) == []
    assert len(talk.state.own.requests) == 1


def test_a_requester_that_dies_is_cancelled_by_the_broker() -> None:
    talk, asker, one, two = trio()
    ask(asker, number=99)
    ask(asker, number=100)
    asker.die()
    assert cancels(one) == cancels(two) == [(asker.record.id, 99), (asker.record.id, 100)]
    assert len(talk.state.own.requests) == 0


def test_a_requester_is_told_of_each_responder_that_dies() -> None:
    talk, asker, one, two = trio()
    ask(asker)
    one.die()
    two.die()
    assert lost(asker) == [(7, 1), (7, 0)]
    assert len(talk.state.own.requests) == 0
    assert "'one'" in asker.failures()[0].reason


def test_a_responder_that_dies_after_its_last_reply_is_not_missed() -> None:
    talk, asker, one, two = trio()
    ask(asker, flags=Flag.ACKNOWLEDGE)
    reply(talk, one, asker, 99)
    one.die()
    assert lost(asker) == []
    two.die()
    assert lost(asker) == [(7, 0)]


def test_a_responder_that_dies_in_the_middle_of_a_large_last_reply_is_lost() -> None:
    talk, asker, one, _ = trio(queue_group="g")
    ask(asker)
    stream = one.open_stream(f"$inbox/{asker.record.id}", 2 * CHUNK_BYTES, Flag.LAST, sequence=99)
    one.chunk(stream, bytes(CHUNK_BYTES))
    one.die()
    assert lost(asker) == [(7, 0)]
    assert [failure.code for failure in asker.failures(Kind.STREAM_ABORT)] == [Code.PUBLISHER_GONE]
    assert asker.dropped(0) == 0


def test_a_large_last_reply_ends_its_request_when_it_is_complete() -> None:
    talk, asker, one, two = trio()
    ask(asker)
    one.publish_large(f"$inbox/{asker.record.id}", bytes(2 * CHUNK_BYTES), Flag.LAST, sequence=99)
    assert cancels(two) == [(asker.record.id, 99)]
    assert asker.large() == [bytes(2 * CHUNK_BYTES)]


def test_a_retry_to_another_member_is_one_request_with_both() -> None:
    talk, asker, one, two = trio(queue_group="g")
    ask(asker)
    ask(asker)
    assert (len(one.delivered()), len(two.delivered())) == (1, 1)
    assert len(talk.state.own.requests) == 1
    one.die()
    assert lost(asker) == [(7, 1)]
    reply(talk, two, asker, 99)
    assert len(talk.state.own.requests) == 0


def test_a_request_that_waits_for_a_member_that_dies_moves_to_another() -> None:
    talk, asker, one, two = trio(queue_group="g", queue_messages=1)
    for number in range(1, 5):
        ask(asker, number=number)
    assert (len(one.delivered()), len(two.delivered())) == (1, 1)
    one.die()
    assert lost(asker) == [(7, 0)]
    for _ in range(3):
        two.credit(1, 1, 1)
    assert len(two.delivered()) == 3
    two.die()
    assert len(lost(asker)) == 4
    assert len(talk.state.own.requests) == 0


def test_a_responder_that_unsubscribes_still_owes_what_it_has_and_not_what_waits() -> None:
    talk = Talk()
    asker, one = talk.peer(), talk.peer("one")
    one.subscribe("t", responder=True, queue_messages=1)
    ask(asker, number=1)
    ask(asker, number=2)
    one.put(Kind.UNSUBSCRIBE, number=1, target=50)
    assert lost(asker) == [(7, 0)]
    assert len(talk.state.own.requests) == 1
    reply(talk, one, asker, 1)
    assert len(talk.state.own.requests) == 0


def test_a_session_with_two_responders_for_a_topic_owes_two_last_replies() -> None:
    talk = Talk()
    asker, one = talk.peer(), talk.peer("one")
    one.subscribe("t", responder=True)
    one.subscribe("#", responder=True)
    ask(asker, flags=Flag.ACKNOWLEDGE)
    assert asker.all_of(Kind.DONE)[0].count == 2
    reply(talk, one, asker, 99)
    assert len(talk.state.own.requests) == 1
    one.die()
    assert lost(asker) == [(7, 0)]


def test_credit_for_replies_goes_to_the_responder_that_it_names() -> None:
    talk, asker, one, two = trio()
    ask(asker, flags=Flag.ACKNOWLEDGE)
    asker.put(Kind.CREDIT, Flag.REQUEST, lane=Lane.CONTROL, target=two.record.id, sequence=99, count=5, total_bytes=10)
    (frame,) = two.all_of(Kind.CREDIT)
    assert (frame.flags, frame.number, frame.sequence) == (Flag.REQUEST, asker.record.id, 99)
    assert (frame.count, frame.total_bytes) == (5, 10)
    assert one.all_of(Kind.CREDIT) == []
    for target, number in ((two.record.id, 98), (asker.record.id, 99), (0, 0)):
        asker.put(Kind.CREDIT, Flag.REQUEST, lane=Lane.CONTROL, target=target, sequence=number, count=5)
    assert len(two.all_of(Kind.CREDIT)) == 1
    assert asker.is_open


def test_a_request_without_a_number_is_not_followed() -> None:
    talk, asker, one, _ = trio()
    ask(asker, number=0)
    assert len(talk.state.own.requests) == 0
    one.die()
    assert asker.failures() == []


def test_the_broker_follows_so_many_requests_of_a_session_and_forgets_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.state.requests.REQUESTS_FOLLOWED_MAX", 3)
    talk, asker, one, _ = trio()
    for number in range(1, 10):
        ask(asker, number=number)
    assert len(talk.state.own.requests) == 3
    asker.die()
    assert [number for _, number in cancels(one)] == [7, 8, 9]
    assert not talk.state.own.requests.busy


def test_a_last_reply_that_fits_no_request_does_nothing() -> None:
    talk, asker, one, two = trio()
    ask(asker)
    reply(talk, one, two, 99)
    reply(talk, one, asker, 1)
    one.publish("elsewhere", b"", Flag.LAST, sequence=99)
    assert len(talk.state.own.requests) == 1
    assert one.is_open


def test_a_session_that_asks_itself_can_end() -> None:
    talk = Talk()
    both = talk.peer()
    both.subscribe("t", responder=True, queue_messages=1)
    for number in range(1, 4):
        ask(both, number=number)
    both.die()
    assert not talk.state.own.requests.busy
    assert talk.state.take_ready() == []


def test_a_number_that_is_used_at_two_topics_leaves_nothing_behind() -> None:
    talk, asker, one, two = trio()
    one.subscribe("u", responder=True)
    ask(asker, "t")
    ask(asker, "u")
    ask(asker, "t")
    asker.put(Kind.CANCEL, sequence=99)
    assert not talk.state.own.requests.busy
    ask(asker, "u")
    ask(asker, "t")
    two.die()
    one.die()
    assert not talk.state.own.requests.busy
