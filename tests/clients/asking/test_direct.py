"""The shortest way of requests and replies says what the long one says."""

from __future__ import annotations

import queue

import pytest

import clients

PATIENCE_S = 60.0


def described(message: clients.Message) -> tuple[object, ...]:
    body = message.body
    return message.value, message.lane, dict(message.headers), body.reply_to, body.last, body.error, body.end


@pytest.mark.parametrize("lane", ["control", "default", "bulk"])
@pytest.mark.parametrize("value", [b"", b"x" * 64, None, {"a": 1}, b"x" * 100_000])
def test_either_way_a_request_and_its_reply_are_the_same(
    bus: clients.Client, other: clients.Client, value: object, lane: str
) -> None:
    seen: queue.Queue[clients.Message] = queue.Queue()

    def echo(message: clients.Message) -> object:
        seen.put(message)
        return message.value

    other.respond("echo", echo)
    # A request with retries goes the long way.
    replies = [bus.request("echo", value, timeout_s=PATIENCE_S, retries=retries, lane=lane) for retries in (0, 1)]
    short, long = seen.get(), seen.get()
    assert described(short) == described(long)
    assert short.body.request not in (0, long.body.request)
    assert described(replies[0]) == described(replies[1]) == (value, lane, {}, "", True, "", False)
    assert replies[0].body.responder == replies[1].body.responder != 0


@pytest.mark.parametrize("wrong", [{"timeout_s": -1.0}, {"timeout_s": "1"}, {"lane": "fast"}, {"retries": -1}])
def test_a_request_that_cannot_be_is_refused_before_it_leaves(
    bus: clients.Client, other: clients.Client, wrong: dict[str, object]
) -> None:
    asked: queue.Queue[object] = queue.Queue()
    other.respond("echo", lambda message: asked.put(message.value))
    with pytest.raises(clients.InvalidValue):
        bus.request("echo", b"never", **wrong)
    with pytest.raises(clients.InvalidValue):
        bus.request("echo/+", b"never")
    bus.request("echo", b"first", timeout_s=PATIENCE_S)
    assert asked.get() == b"first"


def test_a_reply_by_hand_and_the_function_s_own_are_not_both_sent(bus: clients.Client, other: clients.Client) -> None:
    def twice(request: clients.Request) -> object:
        request.reply(b"by hand")
        return b"returned"

    other.respond("twice", twice)
    assert bus.request("twice", b"", timeout_s=PATIENCE_S).value == b"by hand"
    assert bus.request("twice", b"", timeout_s=PATIENCE_S).value == b"by hand"
