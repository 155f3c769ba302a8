"""Many replies: from all responders, and many from one, with both kinds of client."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import clients
from broker.limits import REPLIES_AHEAD, REPLIES_AHEAD_BYTES
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0


def deferred(message: clients.Message) -> object:
    return clients.DEFERRED


def values(replies: clients.Replies) -> list[object]:
    return [reply.value for reply in replies]


def test_it_ends_when_all_responders_have_replied(bus: clients.Client, connect: Connect) -> None:
    for number in range(3):
        connect(f"shard-{number}").respond("search", lambda message, number=number: [number, message.value])
    replies = bus.request_many("search", "query", timeout_s=None)
    assert sorted(values(replies)) == [[0, "query"], [1, "query"], [2, "query"]]
    assert replies.complete
    assert list(replies) == []


def test_a_plain_subscriber_is_not_waited_for(bus: clients.Client, other: clients.Client) -> None:
    other.respond("search", lambda message: "reply")
    with other.subscribe("search"):
        assert values(bus.request_many("search", timeout_s=None)) == ["reply"]


def test_nobody_there_is_said_at_once(bus: clients.Client) -> None:
    with pytest.raises(clients.NoResponders):
        next(iter(bus.request_many("nobody", timeout_s=None)))


def test_headers_and_lane_travel_with_it(bus: clients.Client, other: clients.Client) -> None:
    other.respond("search", lambda message: [message.lane, dict(message.headers)])
    replies = bus.request_many("search", headers={"a": "b"}, lane="control", timeout_s=None)
    assert values(replies) == [["control", {"a": "b"}]]


def test_a_failure_is_raised_after_the_replies_of_the_others(bus: clients.Client, connect: Connect) -> None:
    def fail(message: clients.Message) -> object:
        raise ValueError("shard 1 is broken")

    connect("bad").respond("search", fail)
    kept: list[clients.Message] = []
    arrived = threading.Event()

    def later(message: clients.Message) -> object:
        kept.append(message)
        arrived.set()
        return clients.DEFERRED

    good = connect("good")
    good.respond("search", later)
    good.respond("go", lambda message: kept[0].reply("good") and None)
    replies = bus.request_many("search", timeout_s=PATIENCE_S)
    thread = threading.Thread(target=lambda: arrived.wait(PATIENCE_S) and bus.request("go", timeout_s=PATIENCE_S))
    thread.start()
    assert next(replies).value == "good"
    with pytest.raises(clients.RequestFailed, match="shard 1 is broken"):
        next(replies)
    assert not replies.complete
    thread.join(PATIENCE_S)


def test_it_ends_after_the_stall_time_without_a_reply(bus: clients.Client, other: clients.Client) -> None:
    other.respond("search", lambda message: "quick")
    other.respond("search", deferred)
    got: list[object] = []
    # The first reply may take longer than that on a busy machine.
    while not got:
        replies = bus.request_many("search", timeout_s=None, stall_s=0.3)
        got = values(replies)
        assert not replies.complete
    assert got == ["quick"]


def test_it_ends_at_its_time_out_although_a_responder_never_ends(bus: clients.Client, other: clients.Client) -> None:
    other.respond("endless", lambda message: (number for number in itertools.count()))
    got: list[object] = []
    # The first reply may take longer than that on a busy machine.
    while not got:
        got = values(bus.request_many("endless", timeout_s=0.3))
    assert got == list(range(len(got)))


@pytest.mark.parametrize("options", [{"timeout_s": -1}, {"stall_s": float("nan")}, {"max_replies": 0}])
def test_limits_that_cannot_be_are_refused(bus: clients.Client, options: dict[str, float]) -> None:
    with pytest.raises(clients.InvalidValue):
        bus.request_many("search", **options)


def test_a_generator_replies_many_times_and_then_ends(bus: clients.Client, other: clients.Client) -> None:
    def count(message: clients.Message) -> Iterator[object]:
        for number in range(message.value):
            yield {"number": number}

    other.respond("count", count)
    replies = bus.request_many("count", 1000, timeout_s=None)
    assert values(replies) == [{"number": number} for number in range(1000)]
    assert replies.complete
    assert values(bus.request_many("count", 0, timeout_s=None)) == []


def test_streams_of_several_responders_mix(bus: clients.Client, connect: Connect) -> None:
    for name in ("left", "right"):
        connect(name).respond("count", lambda message, name=name: ([name, number] for number in range(700)))
    got = values(bus.request_many("count", timeout_s=None))
    for name in ("left", "right"):
        assert [number for who, number in got if who == name] == list(range(700))


def test_replies_can_be_sent_by_hand(bus: clients.Client, other: clients.Client) -> None:
    def by_hand(message: clients.Message) -> object:
        message.reply(1, last=False)
        message.reply(2, last=False)
        message.end()
        return clients.DEFERRED

    other.respond("hand", by_hand)
    assert values(bus.request_many("hand", timeout_s=None)) == [1, 2]


def test_what_a_generator_raises_comes_after_what_it_yielded(bus: clients.Client, other: clients.Client) -> None:
    def fail(message: clients.Message) -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    other.respond("count", fail)
    replies = bus.request_many("count", timeout_s=None)
    assert next(replies).value == 1
    with pytest.raises(clients.RequestFailed, match="ValueError: no more"):
        next(replies)


def test_a_value_that_cannot_be_sent_ends_a_stream_with_an_error(bus: clients.Client, other: clients.Client) -> None:
    closed = threading.Event()

    def strange(message: clients.Message) -> Iterator[object]:
        try:
            yield 1
            yield object()
        finally:
            closed.set()

    other.respond("count", strange)
    replies = bus.request_many("count", timeout_s=None)
    assert next(replies).value == 1
    with pytest.raises(clients.RequestFailed, match="cannot be sent"):
        next(replies)
    assert closed.wait(PATIENCE_S)


def test_a_slow_requester_holds_a_stream_back_and_nothing_else(bus: clients.Client, other: clients.Client) -> None:
    made: list[int] = []

    def count(message: clients.Message) -> Iterator[int]:
        for number in range(4 * REPLIES_AHEAD):
            made.append(number)
            yield number

    other.respond("count", count)
    other.respond("echo", lambda message: message.value)
    replies = bus.request_many("count", timeout_s=None)
    got = [next(replies).value]
    for number in range(100):
        assert bus.request("echo", number, timeout_s=PATIENCE_S).value == number
    assert len(made) <= REPLIES_AHEAD + 1
    for reply in replies:
        got.append(reply.value)
        assert len(made) <= len(got) + REPLIES_AHEAD + 1
    assert got == list(range(4 * REPLIES_AHEAD))


def test_a_stream_of_large_replies_is_held_back_by_its_bytes(bus: clients.Client, other: clients.Client) -> None:
    made: list[int] = []

    def arrays(message: clients.Message) -> Iterator[object]:
        for number in range(30):
            made.append(number)
            yield np.full(1 << 18, number, np.float32)

    other.respond("arrays", arrays)
    other.respond("echo", lambda message: message.value)
    replies = bus.request_many("arrays", timeout_s=None)
    got = [next(replies).value]
    for number in range(30):
        bus.request("echo", number, timeout_s=PATIENCE_S)
    assert len(made) <= REPLIES_AHEAD_BYTES // (1 << 20) + 2
    got.extend(reply.value for reply in replies)
    assert [array[-1] for array in got] == list(range(30))


def test_leaving_a_stream_closes_its_generator(bus: clients.Client, other: clients.Client) -> None:
    closed = threading.Event()

    def endless(message: clients.Message) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            assert message.cancelled
            closed.set()

    other.respond("endless", endless)
    with bus.request_many("endless", timeout_s=None) as replies:
        assert next(replies).value == 0
    assert closed.wait(PATIENCE_S)
    assert list(replies) == []
    closed.clear()
    for reply in bus.request_many("endless", timeout_s=None):
        assert reply.value == 0
        break
    del reply
    assert closed.wait(PATIENCE_S)
    closed.clear()
    assert len(values(bus.request_many("endless", timeout_s=None, max_replies=500))) == 500
    assert closed.wait(PATIENCE_S)
    closed.clear()
    assert bus.request("endless", timeout_s=PATIENCE_S).value == 0
    assert closed.wait(PATIENCE_S)


def test_a_responder_that_leaves_in_the_middle_is_an_error_after_what_it_said(
    bus: clients.Client, other: clients.Client
) -> None:
    closed = threading.Event()

    def endless(message: clients.Message) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    other.respond("endless", endless)
    replies = bus.request_many("endless", timeout_s=None)
    assert [next(replies).value for _ in range(10)] == list(range(10))
    other.close()
    assert closed.wait(PATIENCE_S)
    rest = []
    with pytest.raises(clients.ResponderLost, match="'endless'"):
        rest.extend(reply.value for reply in replies)
    assert not replies.complete
    assert rest == list(range(10, 10 + len(rest)))


def test_large_replies_of_many_responders_all_arrive(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url, name="asker") as bus:
        shards = [clients.connect(tcp_broker.url, name=f"shard-{number}") for number in range(6)]
        for number, shard in enumerate(shards):
            shard.respond("pull", lambda message, number=number: np.full(5_000_000, number, np.float32))
        got = sorted(reply.value[-1] for reply in bus.request_many("pull", timeout_s=None))
        assert got == list(range(6))
        for shard in shards:
            shard.close()


def test_too_many_streams_at_once_are_refused_with_the_limit(
    bus: clients.Client, other: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.asking.responding.REPLY_STREAMS_MAX", 2)
    if not isinstance(other, clients.Client):
        pytest.skip("the asynchronous client lets further requests wait")
    other.respond("endless", lambda message: (number for number in itertools.count()))
    open_streams = [bus.request_many("endless", timeout_s=None) for _ in range(2)]
    assert [next(replies).value for replies in open_streams] == [0, 0]
    with pytest.raises(clients.RequestFailed, match="reply_streams_max"):
        next(bus.request_many("endless", timeout_s=None))
    for replies in open_streams:
        replies.close()
