"""Requests and replies with both kinds of client, over every transport."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

import clients
from tests.background import in_background
from tests.clients.conftest import Connect

PATIENCE_S = 60.0


def test_a_request_gets_what_the_function_returns(bus: clients.Client, other: clients.Client) -> None:
    other.respond("add", lambda message: message.value["a"] + message.value["b"])
    assert bus.request("add", {"a": 1, "b": 2}, timeout_s=PATIENCE_S).value == 3


def test_large_requests_and_replies_travel_whole(bus: clients.Client, other: clients.Client) -> None:
    other.respond("double", lambda message: message.value * 2)
    array = np.arange(1_000_000, dtype=np.float64)
    assert np.array_equal(bus.request("double", array, timeout_s=PATIENCE_S).value, array * 2)


def test_nobody_at_a_topic_is_said_at_once(bus: clients.Client, other: clients.Client) -> None:
    with other.subscribe("listened"), pytest.raises(clients.NoResponders, match="listened"):
        bus.request("listened", 1, timeout_s=PATIENCE_S)
    with other.subscribe("listened"), pytest.raises(clients.NoResponders):
        bus.request("listened", np.zeros(100_000), timeout_s=PATIENCE_S)


def test_what_the_function_raises_reaches_the_requester(bus: clients.Client, other: clients.Client) -> None:
    def fail(message: clients.Message) -> object:
        raise ValueError("no such layer: 7")

    other.respond("failing", fail)
    with pytest.raises(clients.RequestFailed, match="ValueError: no such layer: 7"):
        bus.request("failing", timeout_s=PATIENCE_S)


def test_a_reply_that_cannot_be_sent_is_an_error_for_the_requester(bus: clients.Client, other: clients.Client) -> None:
    other.respond("strange", lambda message: object())
    with pytest.raises(clients.RequestFailed, match="cannot be sent"):
        bus.request("strange", timeout_s=PATIENCE_S)


class Kept:
    """A responder's function that keeps what it is asked, and when it is cancelled."""

    def __init__(self) -> None:
        self.requests: queue.Queue[clients.Request] = queue.Queue()
        self.cancelled = threading.Event()

    def __call__(self, request: clients.Request) -> object:
        request.on_cancel(self.cancelled.set)
        self.requests.put(request)
        return clients.DEFERRED


def test_a_retry_runs_the_function_no_second_time(bus: clients.Client, connect: Connect) -> None:
    kept = Kept()
    responder, watcher = connect("responder"), connect("watcher").subscribe("slow")
    responder.respond("slow", kept)
    # The request's `reply` belongs to the client that was asked, and so to its loop.
    responder.respond("now", lambda message: kept.requests.get_nowait().reply("at last") and None)
    thread, outcome = in_background(lambda: bus.request("slow", timeout_s=0.5, retries=100))
    numbers = {watcher.next(PATIENCE_S).body.request for _ in range(3)}
    assert len(numbers) == 1
    bus.request("now", timeout_s=PATIENCE_S)
    thread.join(PATIENCE_S)
    assert [reply.value for reply in outcome] == ["at last"]
    assert kept.requests.empty()


def test_a_request_that_times_out_is_cancelled_at_its_responder(bus: clients.Client, other: clients.Client) -> None:
    kept = Kept()
    other.respond("slow", kept)
    # One that was given up before it came, as it may be on a busy machine, is not shown to the responder.
    while kept.requests.empty():
        with pytest.raises(clients.TimeoutError, match="a reply to a request on 'slow'"):
            bus.request("slow", timeout_s=1.0)
    assert kept.cancelled.wait(PATIENCE_S)
    request = kept.requests.get(timeout=PATIENCE_S)
    assert request.cancelled
    other.respond("late", lambda message: request.reply("nobody wants it") and None)
    bus.request("late", timeout_s=PATIENCE_S)


def test_a_requester_that_closes_cancels_its_requests(bus: clients.Client, other: clients.Client) -> None:
    kept = Kept()
    other.respond("slow", kept)
    thread, outcome = in_background(lambda: bus.request("slow", timeout_s=PATIENCE_S))
    kept.requests.get(timeout=PATIENCE_S)
    bus.close()
    assert kept.cancelled.wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert isinstance(outcome[0], clients.ConnectionClosed)


def test_a_reply_makes_the_other_responders_stop(bus: clients.Client, connect: Connect) -> None:
    slow, fast = Kept(), Kept()
    connect("slow").respond("race", slow)
    winner = connect("fast")
    winner.respond("race", fast)
    winner.respond("now", lambda message: fast.requests.get_nowait().reply("fast") and None)
    thread, outcome = in_background(lambda: bus.request("race", timeout_s=PATIENCE_S))
    slow.requests.get(timeout=PATIENCE_S)
    while fast.requests.empty():
        thread.join(0.01)
    bus.request("now", timeout_s=PATIENCE_S)
    assert slow.cancelled.wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert [reply.value for reply in outcome] == ["fast"]


def test_a_request_fails_at_once_when_its_last_responder_leaves(bus: clients.Client, other: clients.Client) -> None:
    kept = Kept()
    other.respond("slow", kept)
    thread, outcome = in_background(lambda: bus.request("slow", timeout_s=3 * PATIENCE_S))
    kept.requests.get(timeout=PATIENCE_S)
    other.close()
    thread.join(PATIENCE_S)
    assert isinstance(outcome[0], clients.ResponderLost), outcome
    assert outcome[0].topic == "slow"
    assert "second" in outcome[0].reason


def test_a_retry_goes_to_another_responder_at_once_when_the_first_one_leaves(
    bus: clients.Client, connect: Connect
) -> None:
    kept = Kept()
    first, second = connect("leaving"), connect("staying")
    first.respond("slow", kept, queue_group="g")
    thread, outcome = in_background(lambda: bus.request("slow", timeout_s=3 * PATIENCE_S, retries=1))
    kept.requests.get(timeout=PATIENCE_S)
    second.respond("slow", lambda message: "second", queue_group="g")
    first.close()
    thread.join(PATIENCE_S)
    assert [reply.value for reply in outcome] == ["second"]


def test_a_function_that_has_replied_itself_replies_no_second_time(bus: clients.Client, other: clients.Client) -> None:
    def twice(message: clients.Message) -> object:
        message.reply("once")
        return "twice"

    other.respond("twice", twice)
    assert [reply.value for reply in bus.request_many("twice", timeout_s=None)] == ["once"]


def test_a_generator_without_a_value_is_no_reply_to_a_plain_request(bus: clients.Client, other: clients.Client) -> None:
    other.respond("empty", lambda message: (value for value in ()))
    with pytest.raises(clients.RequestFailed, match="ended without a reply"):
        bus.request("empty", timeout_s=PATIENCE_S)


def test_responders_in_a_queue_group_share_requests(bus: clients.Client, connect: Connect) -> None:
    for name in ("left", "right"):
        connect(name).respond("who", lambda message, name=name: name, queue_group="responders")
    answers = [bus.request("who", timeout_s=PATIENCE_S).value for _ in range(10)]
    assert answers.count("left") == 5


def test_a_message_that_is_no_request_cannot_be_replied_to(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("plain")
    bus.publish("plain", 1)
    message = subscription.next(PATIENCE_S)
    assert not message.is_request
    with pytest.raises(clients.InvalidValue, match="not a request"):
        message.reply(2)
