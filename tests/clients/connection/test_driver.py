"""How a synchronous client reads what comes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import clients
from tests.clients.ranks import PATIENCE_S
from tests.clients.serving import ServingThread

NUMBERS = 64 * 1024


def test_who_waits_gets_a_large_message_before_the_next_one_is_read_and_that_gets_its_memory(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The keeper would read while nobody waits.
    monkeypatch.setattr("clients.connection.driver.IDLE_S", 10 * PATIENCE_S)
    with clients.connect(tcp_broker.url) as bus, clients.connect(tcp_broker.url) as other:
        arrays = bus.subscribe("arrays")
        for number in range(5):
            other.publish("arrays", np.full(NUMBERS, number))
        other.flush(timeout_s=PATIENCE_S)
        places = set()
        for number in range(5):
            array = arrays.next(timeout_s=PATIENCE_S).value
            assert arrays.pending == 0
            assert array.min() == array.max() == number
            places.add(array.ctypes.data)
            del array
        assert len(places) == 1


def test_who_pauses_says_what_others_wait_for_and_has_read_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.connection.driver.IDLE_S", 10 * PATIENCE_S)
    with (
        ServingThread(f"unix://{tmp_path}/broker.sock") as broker,
        clients.connect(broker.url) as bus,
        clients.connect(broker.url) as other,
    ):
        bus.declare("a", retain=False)
        subscription = other.subscribe("a")
        bus.publish("a", np.zeros(NUMBERS), timeout_s=PATIENCE_S)
        array = subscription.next(PATIENCE_S).value
        bus.flush(PATIENCE_S)
        del array
        assert other._driver.run(other._driver.pause(0.0))
        assert not other._core.incoming.leases._over
        other.flush(PATIENCE_S)
        # What the broker has to say of that is in the socket when it does something else.
        broker.call(lambda: None)
        assert bus._core.arenas._lent
        assert bus._driver.run(bus._driver.pause(0.0))
        assert not bus._core.arenas._lent


def test_everybody_has_heard_of_a_lost_connection_when_who_tells_of_it_is_interrupted(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is this thread that finds out.
    monkeypatch.setattr("clients.connection.driver.IDLE_S", 10 * PATIENCE_S)

    def interrupt(record: logging.LogRecord) -> bool:
        raise KeyboardInterrupt

    told = logging.getLogger("clients.connection.pump")
    with clients.connect(tcp_broker.url, name="interrupted") as bus:
        group, subscription = bus.group("interrupted", world_size=1), bus.subscribe("interrupted")
        told.addFilter(interrupt)
        try:
            tcp_broker.cut_off("interrupted")
            with pytest.raises(KeyboardInterrupt):
                subscription.next(PATIENCE_S)
        finally:
            told.removeFilter(interrupt)
        with pytest.raises(clients.ConnectionClosed):
            group.barrier(timeout_s=PATIENCE_S)
        bus.publish("interrupted", 1, timeout_s=PATIENCE_S)
        assert subscription.next(PATIENCE_S).value == 1
