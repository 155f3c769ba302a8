"""Large messages of the synchronous client, which go without coroutines, also where they wait before they begin."""

from __future__ import annotations

import gc
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from weakref import ref

import numpy as np
import pytest

import clients
from broker.limits import KIB, MIB, PUBLISH_WINDOW_BYTES
from clients.connection import operations
from tests.clients.conftest import Interrupted
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


@pytest.mark.usefixtures("interrupting")
def test_who_is_interrupted_while_a_large_message_waits_for_room_has_published_and_kept_nothing_of_it(
    tcp_broker: ServingThread,
) -> None:
    half, main = PUBLISH_WINDOW_BYTES // 2, threading.main_thread().ident or 0
    with clients.connect(tcp_broker.url) as bus, clients.connect(tcp_broker.url) as other:
        unread = other.subscribe("large", queue_messages=1)
        other.subscribe("interrupt", handler=lambda message: signal.pthread_kill(main, signal.SIGUSR1))
        for letter in (b"1", b"2", b"3"):
            bus.publish("large", half * letter)
        array = np.full(half, ord("4"), np.uint8)
        gone = ref(array)
        assert _is_interrupted(bus, array)
        del array
        gc.collect()
        assert gone() is None
        assert [unread.next(timeout_s=PATIENCE_S).value[:1] for _ in range(3)] == [b"1", b"2", b"3"]
        bus.publish("large", half * b"5")
        assert unread.next(timeout_s=PATIENCE_S).value == half * b"5"


def _is_interrupted(bus: clients.Client, array: np.ndarray) -> bool:
    try:
        bus.publish("interrupt", True)
        bus.publish("large", array, timeout_s=PATIENCE_S)
    except Interrupted:
        return True
    return False


def test_large_messages_of_two_threads_on_a_topic_wait_for_room_each_until_its_own_has_left(
    tcp_broker: ServingThread,
) -> None:
    half, count = PUBLISH_WINDOW_BYTES // 2, 8
    with clients.connect(tcp_broker.url) as bus, clients.connect(tcp_broker.url) as other:
        subscription = other.subscribe("large", queue_messages=1)

        def publish(thread: int) -> None:
            for number in range(count):
                bus.publish("large", np.full(half, thread * count + number, np.uint8), timeout_s=PATIENCE_S)

        with ThreadPoolExecutor(2) as pool:
            publishing = [pool.submit(publish, thread) for thread in range(2)]
            values = [subscription.next(timeout_s=PATIENCE_S).value for _ in range(2 * count)]
            for each in publishing:
                each.result(PATIENCE_S)
        assert all((value == value[0]).all() for value in values)
        numbers = [int(value[0]) for value in values]
        assert sorted(numbers) == list(range(2 * count))
        for first in (0, count):
            assert [number for number in numbers if first <= number < first + count] == list(
                range(first, first + count)
            )
