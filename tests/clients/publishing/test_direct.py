"""Large messages of the synchronous client that need not wait before they begin."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import clients
from broker.limits import KIB, MIB, PUBLISH_WINDOW_BYTES
from clients.connection import operations
from tests.clients.ranks import PATIENCE_S
from tests.clients.serving import ServingThread


def test_a_large_message_that_can_begin_at_once_goes_without_the_coroutines_also_if_it_waits_on_its_way(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clients.connect(tcp_broker.url) as bus:
        subscription = bus.subscribe("large")
        monkeypatch.setattr(operations, "hand_over", None)
        array = np.arange(4 * PUBLISH_WINDOW_BYTES // 8)
        bus.publish("large", bytes(64 * KIB))
        bus.publish("large", array, lane="bulk")
        assert subscription.next(timeout_s=PATIENCE_S).value == bytes(64 * KIB)
        assert np.array_equal(subscription.next(timeout_s=PATIENCE_S).value, array)


def test_a_large_message_that_does_not_leave_in_time_is_given_up_and_the_next_one_comes(
    tcp_broker: ServingThread,
) -> None:
    with clients.connect(tcp_broker.url) as bus, clients.connect(tcp_broker.url) as other:
        unread = other.subscribe("large", queue_messages=1)
        array = np.zeros(32 * MIB, np.uint8)
        bus.publish("large", array)
        bus.publish("large", bytes(64 * KIB))
        with pytest.raises(clients.TimeoutError, match=f"a message of {len(array)} bytes on topic 'large' to leave"):
            bus.publish("large", array, timeout_s=0.05)
        assert unread.next(timeout_s=PATIENCE_S).value.nbytes == len(array)
        assert unread.next(timeout_s=PATIENCE_S).value == bytes(64 * KIB)
        bus.publish("large", b"next")
        assert unread.next(timeout_s=PATIENCE_S).value == b"next"


def test_large_messages_that_wait_for_credit_before_they_begin_go_without_the_coroutines(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clients.connect(tcp_broker.url) as bus, clients.connect(tcp_broker.url) as other:
        subscription = other.subscribe("large")
        monkeypatch.setattr(operations, "hand_over", None)
        for number in range(12):
            bus.publish("large", np.full(PUBLISH_WINDOW_BYTES // 16, number))
        for number in range(12):
            value = subscription.next(timeout_s=PATIENCE_S).value
            assert np.array_equal(value, np.full(PUBLISH_WINDOW_BYTES // 16, number))


def test_a_large_message_without_room_in_time_never_begins_and_says_what_it_waited_for(
    tcp_broker: ServingThread,
) -> None:
    half = PUBLISH_WINDOW_BYTES // 2
    with clients.connect(tcp_broker.url) as bus, clients.connect(tcp_broker.url) as other:
        unread = other.subscribe("large", queue_messages=1)
        # One is sent on and makes room for as much; the others take all the credit that there is, to the last byte.
        for letter in (b"1", b"2", b"3"):
            bus.publish("large", half * letter)
        with pytest.raises(clients.TimeoutError, match=r"after 0\.05 s waiting for room on topic 'large'"):
            bus.publish("large", half * b"4", timeout_s=0.05)
        assert [unread.next(timeout_s=PATIENCE_S).value[:1] for _ in range(3)] == [b"1", b"2", b"3"]
        bus.publish("large", half * b"5")
        assert unread.next(timeout_s=PATIENCE_S).value == half * b"5"


def test_who_waits_for_room_for_a_large_message_is_told_when_the_client_is_closed(tcp_broker: ServingThread) -> None:
    half = PUBLISH_WINDOW_BYTES // 2
    with clients.connect(tcp_broker.url) as bus, clients.connect(tcp_broker.url) as other:
        other.subscribe("large", queue_messages=1)
        for _ in range(3):
            bus.publish("large", bytes(half))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(bus.publish, "large", bytes(half), timeout_s=PATIENCE_S)
            bus.close()
            with pytest.raises(clients.ConnectionClosed):
                waiting.result(PATIENCE_S)
