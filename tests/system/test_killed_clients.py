"""Hundreds of publishers and subscribers are killed in the middle of a large message."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import numpy as np
import pytest

import clients
from broker.limits import BROKER_POOL_BYTES_MAX, MIB, RING_BYTES
from tests.daemon import Daemon, Process
from tests.system.nursery import LARGE_NUMBERS, TOPIC, large
from tests.thorough import rounds

PATIENCE_S = 150.0
"""As long as hundreds of kills may take, or all that was published meanwhile, where others have the processors too."""
NURSERIES = 2
STOP = "stop"
BROKEN_MESSAGES = rounds(300)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as serving:
        yield serving


def pid_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def descriptors(daemon: Daemon, bus: clients.Client) -> int:
    # From the first question over HTTP on, the event loop keeps a descriptor of its own.
    ask(daemon, "sessions")
    for _ in range(3):
        # The daemon closes its side of a question over HTTP in one of the next rounds of its loop.
        bus.flush(PATIENCE_S)
    return len(os.listdir(f"/proc/{pid_of(daemon)}/fd"))


def wait_for_descriptors(daemon: Daemon, bus: clients.Client, count: int) -> None:
    """Returns when the daemon has no more than so many: what it closes by itself may take it some rounds."""
    end_s = time.monotonic() + PATIENCE_S
    while (found := descriptors(daemon, bus)) > count:
        assert time.monotonic() < end_s, f"{found} descriptors, of which {count} were there before"


def resident_bytes(daemon: Daemon) -> int:
    status = Path(f"/proc/{pid_of(daemon)}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def ask(daemon: Daemon, path: str) -> dict[str, list[dict[str, Any]]]:
    with urlopen(f"{daemon.admin_url}/api/v1/{path}", timeout=PATIENCE_S) as answer:
        return msgspec.json.decode(answer.read())


def dropped_messages(daemon: Daemon) -> list[int]:
    """What each subscriber of the topic has lost."""
    subscriptions = [view for session in ask(daemon, "sessions")["sessions"] for view in session["subscriptions"]]
    return [view["dropped_messages"] for view in subscriptions if view["filter"] == TOPIC]


def wait_for_sessions(daemon: Daemon, bus: clients.Client, count: int) -> None:
    """Returns when the broker has dealt with the end of every other session."""
    with bus.subscribe("$sys/sessions", queue_messages=100_000) as events:
        while len(ask(daemon, "sessions")["sessions"]) > count:
            events.next(PATIENCE_S)


def kill_many(daemon: Daemon, role: str, kills: int, seed: int) -> None:
    """Has nurseries kill clients side by side."""
    with ExitStack() as stack:
        nurseries = [
            stack.enter_context(
                Process(
                    daemon.url, role, str(kills // NURSERIES), str(seed + number),
                    module="tests.system.nursery", environment={"OPENBLAS_NUM_THREADS": "1"},
                )
            )
            for number in range(NURSERIES)
        ]  # fmt: skip
        for nursery in nurseries:
            assert nursery.read_line(PATIENCE_S) == f"killed {kills // NURSERIES}", nursery.errors
            assert nursery.errors == ""


class Reader:
    """Takes every message of the topic on a thread of its own and compares it with what it must be.

    Attributes:
        received: messages, by sender.
        gaps: the sum of all gaps.
        large_messages: how many of the messages were large.
        wrong: what was not as it must be; empty when all is well.
    """

    def __init__(self, bus: clients.Client) -> None:
        self.subscription = bus.subscribe(TOPIC)
        self.received: dict[str, int] = {}
        self.gaps = self.large_messages = 0
        self.wrong: list[str] = []
        self._sequence = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for message in self.subscription:
            self._check_gap(message)
            if isinstance(message.value, str):
                return
            self._check_value(message)

    def _check_gap(self, message: clients.Message) -> None:
        if message.gap != message.sequence - self._sequence - 1:
            self.wrong.append(f"{message!r} follows {self._sequence} and tells a gap of {message.gap}")
        self._sequence = message.sequence
        self.gaps += message.gap

    def _check_value(self, message: clients.Message) -> None:
        expected = self.received.get(message.sender, 0)
        self.received[message.sender] = expected + 1
        if isinstance(message.value, np.ndarray):
            self.large_messages += 1
            right = np.array_equal(message.value, large(expected))
        else:
            right = message.value == expected
        if not right:
            self.wrong.append(f"{message!r} is not message {expected} of its sender")

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_no_subscriber_ever_sees_a_part_of_a_message_whose_publisher_was_killed(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="first") as first, clients.connect(daemon.url, name="second") as second:
        fresh_bytes = resident_bytes(daemon)
        readers = [Reader(first), Reader(second)]
        kill_many(daemon, "publish", 60, seed=1)
        wait_for_sessions(daemon, first, 2)
        settled_descriptors = descriptors(daemon, first)
        kill_many(daemon, "publish", BROKEN_MESSAGES - 60, seed=11)
        wait_for_sessions(daemon, first, 2)
        kills = BROKEN_MESSAGES
        while min(dropped_messages(daemon)) < BROKEN_MESSAGES:
            # Some died when their message had left; others have to die in their place.
            kill_many(daemon, "publish", 30, seed=kills)
            wait_for_sessions(daemon, first, 2)
            kills += 30
        first.publish(TOPIC, STOP, ack="accepted")
        for reader in readers:
            reader.join()
            assert reader.wrong == []
            assert len(reader.received) == kills
            assert reader.large_messages > 0
            # Whatever had begun to arrive and never will is told, and nothing else is missing.
            assert reader.gaps == reader.subscription.dropped >= BROKEN_MESSAGES
        assert readers[0].received == readers[1].received
        wait_for_descriptors(daemon, first, settled_descriptors)
        # The pool lets go of what is not needed for a minute; here it may be full.
        assert resident_bytes(daemon) < fresh_bytes + RING_BYTES + BROKER_POOL_BYTES_MAX + 64 * MIB


def test_subscribers_that_are_killed_cost_the_others_nothing(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="alive") as alive, clients.connect(daemon.url, name="publisher") as bus:
        reader = Reader(alive)
        settled_descriptors = descriptors(daemon, bus)
        killer = threading.Thread(target=kill_many, args=(daemon, "read", 100, 21))
        killer.start()
        number = 0
        while killer.is_alive():
            bus.publish(TOPIC, number)
            bus.publish(TOPIC, large(number + 1))
            number += 2
        wait_for_sessions(daemon, bus, 2)
        bus.publish(TOPIC, STOP, ack="accepted")
        reader.join()
        assert reader.wrong == []
        assert reader.received == {"publisher": number}
        assert reader.gaps == reader.subscription.dropped == 0
        wait_for_descriptors(daemon, bus, settled_descriptors)
        assert LARGE_NUMBERS * 8 * number // 2 > 100 * MIB
