"""Large messages of the synchronous client that need not wait before they begin."""

from __future__ import annotations

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
