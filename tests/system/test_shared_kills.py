"""Publishers and subscribers are killed at any moment of a transfer in shared memory.

A thousand of them, as a run by hand:

    TENSORBUS_TEST_KILLS=1000 python -m pytest tests/system/test_shared_kills.py --timeout 600
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from tests.daemon import Daemon
from tests.system.nursery import TOPIC, is_torn, shared_array
from tests.system.test_killed_clients import STOP, descriptors, kill_many, pid_of, wait_for_sessions
from tests.thorough import rounds

KILLS = int(os.environ.get("TENSORBUS_TEST_KILLS", rounds(120)))
PATIENCE_S = 50.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(listen=[f"unix://{tmp_path}/broker.sock"]) as serving:
        yield serving


def mapped_files(daemon: Daemon) -> set[str]:
    """The shared memory that the broker has mapped."""
    lines = Path(f"/proc/{pid_of(daemon)}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:tensorbus" in line}


class Reader:
    """Takes every array of the topic on a thread of its own, and looks at each again after some others.

    Attributes:
        arrays: how many it has taken, and of these how many were shared.
        torn: messages that were not as a whole what had been published.
    """

    def __init__(self, bus: clients.Client) -> None:
        self.subscription = bus.subscribe(TOPIC, queue_messages=16)
        self.arrays = self.shared = 0
        self.torn: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        held: deque[np.ndarray] = deque()
        for message in self.subscription:
            if isinstance(message.value, str):
                return
            self.arrays += 1
            self.shared += not message.value.flags.writeable
            held.append(message.value)
            if is_torn(held[-1]) or is_torn(held[0]):
                self.torn.append(repr(message))
            if len(held) > 6:
                held.popleft()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


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
        reader = Reader(bus)
        kill_many(daemon, "share", KILLS, seed=5)
        settle(daemon, other)
        other.publish(TOPIC, STOP, ack="accepted")
        reader.join()
        assert reader.torn == []
        assert reader.arrays >= KILLS
        assert reader.shared >= reader.arrays // 2
        settle(daemon, bus)
        assert mapped_files(daemon) == set()
        assert descriptors(daemon, other) == before


def test_killed_readers_leave_nothing_behind_and_their_publisher_goes_on(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="reader") as bus, clients.connect(daemon.url, name="publisher") as publisher:
        bus.subscribe("first").close()
        settle(daemon, publisher)
        before = descriptors(daemon, publisher)
        reader = Reader(bus)
        killer = threading.Thread(target=kill_many, args=(daemon, "hold", KILLS, 9))
        killer.start()
        number = 0
        while killer.is_alive():
            publisher.publish(TOPIC, shared_array(number), timeout_s=PATIENCE_S)
            number += 1
        publisher.publish(TOPIC, STOP, ack="accepted")
        reader.join()
        assert (reader.torn, reader.arrays) == ([], number)
        assert reader.subscription.dropped == 0
        settle(daemon, bus)
        # All that was lent has come back.
        assert publisher.publish(TOPIC, "the end", ack="accepted")
        publisher.flush(PATIENCE_S)
        with publisher._driver.lock:
            assert publisher._core.arenas.has_room(1 << 20)
        arenas = len(publisher._core.arenas._arenas)
        assert len(mapped_files(daemon)) == arenas
        assert descriptors(daemon, publisher) == before + arenas
