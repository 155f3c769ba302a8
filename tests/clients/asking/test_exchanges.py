"""What a responder remembers of requests."""

from __future__ import annotations

import gc

import pytest

from broker.limits import REPLIES_AHEAD, REPLIES_KEPT_BYTES, REQUESTS_REMEMBERED_S
from broker.protocol.bodies import MessageBody, encode_body
from broker.protocol.frames import Frame, Kind
from clients.asking.exchanges import CANCELLED_EARLY_MAX, Exchange, Exchanges, Request, Responders
from clients.connection.core import Outbound
from clients.reading.messages import Message, Publication

SECOND_NS = 1_000_000_000
PUBLICATION = Publication("t", "asker")


def request(number: int, session: int = 1) -> Message:
    body = encode_body(MessageBody(reply_to=f"$inbox/{session}", request=number))
    return Message(PUBLICATION, 1, 0, 1, 0, body, b"?", None)


def outbound(payload: bytes | memoryview = b"!", *, last: bool = True) -> Outbound:
    return Outbound("$inbox/1", 1, 1, None, payload, last=last)


def cancel(session: int, number: int) -> Frame:
    return Frame(Kind.CANCEL, number=session, sequence=number)


@pytest.fixture
def responders() -> Responders:
    return Responders()


@pytest.fixture
def table(responders: Responders) -> Exchanges:
    return responders.add(lambda function: function())


def begin(table: Exchanges, number: int = 7, session: int = 1, now_ns: int = 0) -> Exchange:
    asked = table.receive(request(number, session), now_ns)
    assert isinstance(asked, Request), asked
    assert asked.exchange is not None
    return asked.exchange


def test_a_request_keeps_what_its_message_has(table: Exchanges) -> None:
    asked = table.receive(request(7), 0)
    assert isinstance(asked, Request)
    assert (asked.topic, asked.sender, asked.payload, asked.is_request) == ("t", "asker", b"?", True)
    assert not asked.cancelled


def test_a_repeated_request_that_is_running_is_swallowed_and_moves_to_the_newest_inbox(table: Exchanges) -> None:
    exchange = begin(table)
    exchange.sending = outbound()
    assert table.receive(request(7, session=2), 0) is None
    assert exchange.inbox == exchange.sending.topic == "$inbox/2"
    assert not exchange.cancelled


def test_a_repeated_request_that_was_answered_gets_the_same_replies(table: Exchanges) -> None:
    exchange = begin(table)
    exchange.said(outbound(b"1", last=False))
    exchange.said(outbound(b"2"))
    assert exchange.over
    for session in (2, 3):
        assert table.receive(request(7, session), 0) is exchange
        again = exchange.again()
        assert [(message.topic, message.payload) for message in again] == [
            (f"$inbox/{session}", b"1"),
            (f"$inbox/{session}", b"2"),
        ]


def test_kept_replies_are_copies(table: Exchanges) -> None:
    memory = bytearray(b"before")
    exchange = begin(table)
    exchange.said(outbound(memoryview(memory)))
    memory[:] = b"after!"
    assert exchange.again()[0].payload == b"before"


def test_replies_that_are_too_long_to_keep_make_a_repeated_request_a_new_one(table: Exchanges) -> None:
    exchange = begin(table)
    exchange.said(outbound(bytes(REPLIES_KEPT_BYTES // 2), last=False))
    exchange.said(outbound(bytes(REPLIES_KEPT_BYTES)))
    assert exchange.kept is None
    assert begin(table) is not exchange
    assert table.kept_bytes == 0


def test_a_repeated_request_of_which_a_part_was_sent_begins_anew(table: Exchanges) -> None:
    exchange = begin(table)
    exchange.said(outbound(last=False))
    again = begin(table)
    assert exchange.cancelled
    assert not again.cancelled


def test_requests_of_others_and_those_without_a_number_are_never_the_same(table: Exchanges) -> None:
    begin(table, 7)
    begin(table, 8)
    begin(table, 0)
    begin(table, 0)


def test_two_responders_do_not_know_each_others_requests(responders: Responders, table: Exchanges) -> None:
    other = responders.add(lambda function: function())
    begin(table)
    begin(other)


def test_requests_are_forgotten_by_age_count_and_bytes(table: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.asking.exchanges.REQUESTS_REMEMBERED", 3)
    monkeypatch.setattr("clients.asking.exchanges.REPLIES_KEPT_BYTES_MAX", 20)
    old_ns = int(REQUESTS_REMEMBERED_S * SECOND_NS)
    begin(table, 1).said(outbound())
    assert isinstance(table.receive(request(1), old_ns - 1), Exchange)
    begin(table, 1, now_ns=old_ns)
    for number in range(2, 5):
        begin(table, number, now_ns=old_ns)
    begin(table, 1, now_ns=old_ns)
    for exchange in [begin(table, number, now_ns=old_ns) for number in range(10, 13)]:
        exchange.said(outbound(bytes(10)))
    begin(table, 20, now_ns=old_ns)
    assert table.kept_bytes <= 20


def test_what_runs_is_not_forgotten_by_age(table: Exchanges) -> None:
    begin(table, 1)
    assert table.receive(request(1), 10 * int(REQUESTS_REMEMBERED_S * SECOND_NS)) is None


def test_a_cancelled_request_says_so_and_calls_back_once(responders: Responders, table: Exchanges) -> None:
    called: list[str] = []
    asked = table.receive(request(7), 0)
    assert isinstance(asked, Request)
    asked.on_cancel(lambda: called.append("early"))
    responders.cancel(cancel(1, 7))
    responders.cancel(cancel(1, 7))
    assert asked.cancelled
    asked.on_cancel(lambda: called.append("late"))
    assert called == ["early", "late"]


def test_a_cancellation_of_an_inbox_that_the_requester_has_left_is_ignored(
    responders: Responders, table: Exchanges
) -> None:
    exchange = begin(table)
    table.receive(request(7, session=2), 0)
    responders.cancel(cancel(1, 7))
    assert not exchange.cancelled
    responders.cancel(cancel(2, 7))
    assert exchange.cancelled


def test_a_cancelled_request_that_comes_again_runs_again_unless_it_was_answered(
    responders: Responders, table: Exchanges
) -> None:
    exchange = begin(table)
    responders.cancel(cancel(1, 7))
    again = begin(table, session=2)
    assert not again.cancelled
    responders.cancel(cancel(2, 7))
    again.said(outbound(b"for nobody"))
    assert table.receive(request(7, session=3), 0) is again
    assert exchange.cancelled


def test_a_cancellation_that_overtakes_its_request_swallows_it_once(responders: Responders, table: Exchanges) -> None:
    responders.cancel(cancel(1, 7))
    assert table.receive(request(7), 0) is None
    begin(table)


def test_a_cancellation_that_overtakes_its_request_does_not_hit_its_retry(
    responders: Responders, table: Exchanges
) -> None:
    responders.cancel(cancel(1, 7))
    begin(table, session=2)


def test_early_cancellations_are_bounded(responders: Responders, table: Exchanges) -> None:
    for number in range(1, CANCELLED_EARLY_MAX + 2):
        responders.cancel(cancel(1, number))
    begin(table, 1)
    assert table.receive(request(2), 0) is None


def test_credit_bounds_replies_that_are_not_the_last(responders: Responders, table: Exchanges) -> None:
    exchange = begin(table)
    for _ in range(REPLIES_AHEAD):
        assert exchange.ready
        exchange.said(outbound(last=False))
    assert not exchange.ready
    responders.credit(Frame(Kind.CREDIT, number=2, sequence=7, count=10, total_bytes=10))
    assert not exchange.ready
    responders.credit(Frame(Kind.CREDIT, number=1, sequence=7, count=1, total_bytes=1))
    assert exchange.ready
    exchange.said(outbound(last=False))
    assert not exchange.ready
    responders.cancel(cancel(1, 7))
    assert exchange.ready
    exchange.said(outbound(last=False))
    assert exchange.ready


def test_a_lost_connection_stops_what_has_sent_a_part_and_leaves_the_rest(
    responders: Responders, table: Exchanges
) -> None:
    part, nothing, done = begin(table, 1), begin(table, 2), begin(table, 3)
    part.said(outbound(last=False))
    done.said(outbound())
    responders.disconnected()
    assert [part.cancelled, nothing.cancelled, done.cancelled] == [True, False, False]
    responders.close()
    assert nothing.cancelled


def test_a_responder_that_is_gone_is_forgotten(responders: Responders) -> None:
    begin(responders.add(lambda function: function()))
    gc.collect()
    assert not responders._tables
