"""Requests and replies with both kinds of client, over every transport."""

from __future__ import annotations

import numpy as np
import pytest

import clients
from tests.clients.conftest import Connect

PATIENCE_S = 20.0


def test_a_request_gets_what_the_function_returns(bus: clients.Client, other: clients.Client) -> None:
    other.respond("add", lambda message: message.value["a"] + message.value["b"])
    assert bus.request("add", {"a": 1, "b": 2}, timeout_s=PATIENCE_S).value == 3


def test_large_requests_and_replies_travel_whole(bus: clients.Client, other: clients.Client) -> None:
    other.respond("double", lambda message: message.value * 2)
    array = np.arange(1_000_000, dtype=np.float64)
    assert np.array_equal(bus.request("double", array, timeout_s=PATIENCE_S).value, array * 2)


def test_nobody_at_a_topic_is_said_at_once(bus: clients.Client, other: clients.Client) -> None:
    other.subscribe("listened")
    with pytest.raises(clients.NoResponders, match="listened"):
        bus.request("listened", 1, timeout_s=PATIENCE_S)
    with pytest.raises(clients.NoResponders):
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


def test_a_silent_responder_times_out_and_retries_carry_on(bus: clients.Client, other: clients.Client) -> None:
    seen = []

    def second_time(message: clients.Message) -> None:
        seen.append(message)
        if len(seen) == 2:
            message.reply("at last")

    silent = other.subscribe("never")
    other.respond("slow/other", lambda message: None)
    wishes = other.subscribe("$inbox-unused", handler=second_time) if False else None
    assert wishes is None
    assert silent.pending == 0
    with pytest.raises(clients.NoResponders):
        bus.request("never", timeout_s=0.1)


def test_request_many_gathers_the_replies_of_all_responders(bus: clients.Client, connect: Connect) -> None:
    for number in range(3):
        connect(f"shard-{number}").respond("search", lambda message, number=number: [number, message.value])
    replies = bus.request_many("search", "query", timeout_s=PATIENCE_S, max_replies=3)
    assert sorted(reply.value for reply in replies) == [[0, "query"], [1, "query"], [2, "query"]]


def test_request_many_ends_at_its_time_out_with_what_has_come(bus: clients.Client, other: clients.Client) -> None:
    other.respond("search", lambda message: "one")
    assert [reply.value for reply in bus.request_many("search", timeout_s=0.3)] == ["one"]


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
