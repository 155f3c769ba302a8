"""Publishers and subscribers are killed at any moment of a transfer in shared memory.

A thousand of them, as a run by hand:

    TENSORBUS_TEST_KILLS=1000 python -m pytest tests/system/test_shared_kills.py --timeout 600
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from tests.daemon import Daemon
from tests.system.array_readers import ArrayReader
from tests.system.nursery import TOPIC, shared_array
from tests.system.test_killed_clients import (
    PATIENCE_S,
    STOP,
    descriptors,
    kill_many,
    pid_of,
    wait_for_descriptors,
    wait_for_sessions,
)
from tests.thorough import rounds

KILLS = int(os.environ.get("TENSORBUS_TEST_KILLS", rounds(120)))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(listen=[f"unix://{tmp_path}/broker.sock"]) as serving:
        yield serving


def mapped_files(daemon: Daemon) -> set[str]:
    """The shared memory that the broker has mapped."""
    lines = Path(f"/proc/{pid_of(daemon)}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:tensorbus" in line}


def wait_for_mapped(daemon: Daemon, bus: clients.Client, count: int) -> None:
    """Returns when the broker has so many mapped: of the last one a reader tells when it next speaks to the broker."""
    end_s = time.monotonic() + PATIENCE_S
    while len(found := mapped_files(daemon)) != count:
        assert time.monotonic() < end_s, f"{found} are mapped, of which {count} are due"
        bus.flush(PATIENCE_S)


def settle(daemon: Daemon, bus: clients.Client) -> None:
    """Returns when all killed clients are gone, and the topic keeps nothing of theirs."""
    wait_for_sessions(daemon, bus, 2)
    bus.declare(TOPIC, retain=False)
    bus.flush(PATIENCE_S)


def test_killed_publishers_leave_nothing_torn_and_nothing_behind(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="reader") as bus, clients.connect(daemon.url, name="other") as other:
        # From its first subscription on the broker has the eventfd by which the reader is woken.
        bus.subscribe("first").close()
        settle(daemon, other)
        before = descriptors(daemon, other)
        reader = ArrayReader(bus, 16)
        kill_many(daemon, "share", KILLS, seed=5)
        settle(daemon, other)
        other.publish(TOPIC, STOP, ack="accepted")
        reader.join(PATIENCE_S)
        assert reader.torn == []
        assert len(reader.numbers) >= KILLS
        assert reader.shared >= len(reader.numbers) // 2
        settle(daemon, bus)
        wait_for_mapped(daemon, bus, 0)
        wait_for_descriptors(daemon, other, before)


def test_killed_readers_leave_nothing_behind_and_their_publisher_goes_on(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="reader") as bus, clients.connect(daemon.url, name="publisher") as publisher:
        bus.subscribe("first").close()
        settle(daemon, publisher)
        before = descriptors(daemon, publisher)
        reader = ArrayReader(bus, 16)
        killer = threading.Thread(target=kill_many, args=(daemon, "hold", KILLS, 9))
        killer.start()
        number = 0
        while killer.is_alive():
            publisher.publish(TOPIC, shared_array(number), timeout_s=PATIENCE_S)
            number += 1
        publisher.publish(TOPIC, STOP, ack="accepted")
        reader.join(PATIENCE_S)
        assert (reader.torn, len(reader.numbers)) == ([], number)
        assert reader.subscription.dropped == 0
        settle(daemon, bus)
        # All that was lent has come back.
        assert publisher.publish(TOPIC, "the end", ack="accepted")
        publisher.flush(PATIENCE_S)
        with publisher._driver.lock:
            assert publisher._core.arenas.has_room(1 << 20)
        arenas = len(publisher._core.arenas._arenas)
        wait_for_mapped(daemon, bus, arenas)
        wait_for_descriptors(daemon, publisher, before + arenas)
