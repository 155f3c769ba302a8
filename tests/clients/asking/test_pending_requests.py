"""What a requester knows of the replies that it waits for."""

from __future__ import annotations

import pytest

from broker.errors import ConnectionClosed, LimitExceeded, NoResponders, RequestFailed, ResponderLost
from broker.limits import REPLIES_AHEAD, REPLIES_AHEAD_BYTES
from broker.protocol.bodies import Failure, MessageBody, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, Kind, Lane
from clients.asking.requests import PendingRequest, Requests
from clients.reading.messages import Message, Publication
from tests.clients.recording import Recording

PUBLICATION = Publication("$inbox/1", "responder")
NOBODY = Failure(Code.NO_RESPONDERS, "nobody")
GONE = Failure(Code.RESPONDER_LOST, "killed")


@pytest.fixture
def requests() -> Requests:
    return Requests()


def reply(request: PendingRequest, payload: bytes = b"!", responder: int = 3, **body: object) -> Message:
    data = encode_body(MessageBody(request=request.number, responder=responder, **body))
    return Message(PUBLICATION, 1, 0, 1, 1, data, payload, None)


def taken(request: PendingRequest) -> list[bytes]:
    payloads = []
    while request.ready:
        message = request.take()
        if message is None:
            break
        payloads.append(bytes(message.payload))
    return payloads


def test_numbers_differ_from_client_to_client_and_keep_the_reference(requests: Requests) -> None:
    one, two = requests.new("t", 5, many=False), Requests().new("t", 5, many=False)
    assert one.number != two.number
    assert one.number & 0xFFFFFFFF == two.number & 0xFFFFFFFF == 5
    assert one.number < 1 << 63


def test_a_plain_request_is_settled_by_the_first_last_reply(requests: Requests) -> None:
    request = requests.new("t", 5, many=False)
    assert not request.ready
    requests.replied(reply(request, last=True))
    assert (request.ready, request.settled) == (True, True)
    assert taken(request) == [b"!"]


def test_replies_that_nobody_waits_for_go_nowhere(requests: Requests) -> None:
    request = requests.new("t", 5, many=False)
    requests.forget(request, None)
    requests.replied(reply(request, last=True))
    requests.replied(Message(PUBLICATION, 1, 0, 1, 1, b"\xff", b"", None))
    assert not request.ready


@pytest.mark.parametrize("told_first", [True, False])
def test_a_request_to_many_is_over_when_all_that_were_asked_are_done(requests: Requests, told_first: bool) -> None:
    request = requests.new("t", 5, many=True)
    told = Frame(Kind.DONE, target=5, count=2)
    if told_first:
        requests.told(told)
    requests.replied(reply(request, b"1", 3, last=True))
    requests.replied(reply(request, b"2", 4))
    requests.replied(reply(request, b"3", 4, last=True, end=True))
    if not told_first:
        assert not request.settled
        requests.told(told)
    assert request.settled
    assert taken(request) == [b"1", b"2"]


def test_who_was_not_asked_does_not_end_it(requests: Requests) -> None:
    request = requests.new("t", 5, many=True)
    requests.told(Frame(Kind.DONE, target=5, count=1))
    requests.replied(reply(request, b"reader", 0, last=True))
    assert not request.settled
    requests.replied(reply(request, b"responder", 3, last=True))
    assert taken(request) == [b"reader", b"responder"]


def test_failures_of_single_responders_come_last(requests: Requests) -> None:
    request = requests.new("t", 5, many=True)
    requests.told(Frame(Kind.DONE, target=5, count=3))
    requests.replied(reply(request, last=True, error="ValueError"))
    requests.refused(Frame(Kind.ERROR, target=5, count=1), GONE)
    assert not request.ready
    requests.replied(reply(request, b"fine", last=True))
    message = request.take()
    assert message is not None
    assert message.payload == b"fine"
    with pytest.raises(RequestFailed, match="ValueError"):
        request.take()


def test_a_plain_request_waits_for_the_responders_that_are_left(requests: Requests) -> None:
    request = requests.new("t", 5, many=False)
    requests.refused(Frame(Kind.ERROR, target=5, count=1), GONE)
    assert not request.ready
    requests.refused(Frame(Kind.ERROR, target=5, count=0), GONE)
    with pytest.raises(ResponderLost, match="killed"):
        request.take()
    request.again()
    assert not request.ready


def test_nobody_there_fails_it(requests: Requests) -> None:
    request = requests.new("t", 5, many=True)
    requests.refused(Frame(Kind.ERROR, target=6), NOBODY)
    assert not request.ready
    requests.refused(Frame(Kind.ERROR, target=5), NOBODY)
    with pytest.raises(NoResponders):
        request.take()


def test_a_lost_connection_fails_it_after_what_has_come(requests: Requests) -> None:
    request = requests.new("t", 5, many=True)
    requests.replied(reply(request))
    requests.disconnected(ConnectionClosed("gone"))
    assert request.take() is not None
    with pytest.raises(ConnectionClosed):
        request.take()


def test_replies_that_were_dropped_fail_all_that_wait(requests: Requests) -> None:
    waiting = [requests.new("t", number, many=False) for number in (5, 6)]
    requests.dropped(3)
    for request in waiting:
        with pytest.raises(LimitExceeded, match="replies were dropped"):
            request.take()


def test_a_large_reply_that_breaks_off_fails_its_request(requests: Requests) -> None:
    request, other = requests.new("t", 5, many=False), requests.new("t", 6, many=False)
    requests.reply_aborted(request.number, "killed")
    with pytest.raises(RequestFailed, match="broken off: killed"):
        request.take()
    assert not other.ready


def test_more_replies_than_credit_allows_fail_the_request(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.asking.requests.REPLIES_WAITING_MAX", 3)
    request = requests.new("t", 5, many=True)
    for _ in range(4):
        requests.replied(reply(request))
    assert isinstance(request.error, LimitExceeded)


def test_credit_goes_to_each_responder_when_half_of_it_is_used(requests: Requests) -> None:
    request = requests.new("t", 5, many=True)
    frames = [
        frame
        for number in range(REPLIES_AHEAD)
        if (frame := request.credit(reply(request, bytes(8), 3 + number % 2))) is not None
    ]
    assert [(frame.kind, frame.flags, frame.target, frame.count, frame.total_bytes) for frame in frames] == [
        (Kind.CREDIT, Flag.REQUEST, 3, REPLIES_AHEAD // 2, 4 * REPLIES_AHEAD),
        (Kind.CREDIT, Flag.REQUEST, 4, REPLIES_AHEAD // 2, 4 * REPLIES_AHEAD),
    ]
    assert {frame.sequence for frame in frames} == {request.number}
    large = request.credit(reply(request, bytes(REPLIES_AHEAD_BYTES // 2)))
    assert large is not None
    assert large.count == 1
    assert request.credit(reply(request, bytes(REPLIES_AHEAD_BYTES), last=True)) is None
    assert request.credit(reply(request, bytes(REPLIES_AHEAD_BYTES), 0)) is None


def test_giving_up_cancels_in_the_lane_of_the_request_and_only_what_is_under_way(requests: Requests) -> None:
    here = Recording()
    request = requests.new("t", 5, many=False)
    assert not requests.forget(request, here), "it was never sent"
    request = requests.new("t", 6, many=False)
    request.sent_on, request.lane = here, int(Lane.BULK)
    assert requests.forget(request, here)
    (frame,) = here.frames
    assert (frame.kind, frame.lane, frame.sequence) == (Kind.CANCEL, Lane.BULK, request.number)
    assert not requests.forget(request, here)
    replied, refused = requests.new("t", 7, many=False), requests.new("t", 8, many=False)
    replied.sent_on = refused.sent_on = here
    requests.replied(reply(replied, last=True))
    refused.fail(NoResponders("t"))
    assert not requests.forget(replied, here)
    assert not requests.forget(refused, here)
    elsewhere = requests.new("t", 9, many=False)
    elsewhere.sent_on = Recording()
    assert not requests.forget(elsewhere, here)
    assert len(here.frames) == 1


def test_what_was_abandoned_ends_later(requests: Requests) -> None:
    request = requests.new("t", 5, many=True)
    requests.abandoned.append(request)
    requests.end_abandoned(None)
    requests.replied(reply(request))
    assert not request.ready
