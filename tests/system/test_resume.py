"""Subscribers and brokers are killed and started again under a publisher whose messages are accepted one by one."""

from __future__ import annotations

import threading
from pathlib import Path

import clients
from tests.daemon import Daemon, Process
from tests.system.recorder import STOP, TOPIC, whole_lines

PATIENCE_S = 150.0
"""As long as hundreds of messages that are accepted one by one may take where others have the processors too."""
RING = {"ring_messages": 1_000_000, "ring_bytes": 256 << 20}
SUBSCRIBER_KILLS = 30
BROKER_KILLS = 4
MESSAGES_PER_LIFE = 300
MESSAGES_MISSED = 50


class Publisher:
    """Publishes numbers on a thread of its own, each when the broker has accepted the one before.

    Attributes:
        accepted: numbers and sequences that the broker has confirmed.
        unknown: numbers of which nobody knows, because the connection was lost before the answer; they are not sent
            again.
    """

    def __init__(self, bus: clients.Client) -> None:
        self._bus = bus
        self._end = threading.Event()
        self._news = threading.Condition()
        self.accepted: list[tuple[int, int]] = []
        self.unknown: set[int] = set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._end.is_set():
            try:
                sequence = self._bus.publish(TOPIC, number, ack="accepted", timeout_s=PATIENCE_S)
            except clients.ConnectionClosed:
                self.unknown.add(number)
            else:
                assert sequence is not None
                with self._news:
                    self.accepted.append((number, sequence))
                    self._news.notify()
            number += 1

    def wait_for(self, more: int) -> None:
        """Returns when so many more were accepted."""
        with self._news:
            count = len(self.accepted) + more
            assert self._news.wait_for(lambda: len(self.accepted) >= count, PATIENCE_S)

    def stop(self) -> None:
        """Publishes no more."""
        self._end.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_a_killed_subscriber_that_starts_where_it_was_gets_every_accepted_message_once(
    daemon: Daemon, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    with clients.connect(daemon.url, name="publisher") as bus:
        bus.declare(TOPIC, **RING)
        publisher = Publisher(bus)
        arguments = (daemon.url, str(record), str(SUBSCRIBER_KILLS), "7")
        with Process(*arguments, module="tests.system.recorder") as recorder:
            for _ in range(SUBSCRIBER_KILLS):
                assert recorder.read_line(PATIENCE_S) == "killed", recorder.errors
            publisher.stop()
            bus.publish(TOPIC, STOP, ack="accepted")
            assert recorder.read_line(PATIENCE_S) == "ended 0", recorder.errors
        assert publisher.unknown == set()
        assert len(publisher.accepted) > SUBSCRIBER_KILLS
        assert whole_lines(record) == [(sequence, str(number)) for number, sequence in publisher.accepted]


class Subscriber:
    """Takes all messages on a thread of its own, up to STOP.

    Attributes:
        lives: for each life of the broker, the sequences and values in the order in which they came, and gaps.
    """

    def __init__(self, bus: clients.Client) -> None:
        self._news = threading.Condition()
        self._subscription = bus.subscribe(TOPIC)
        self.lives: list[list[tuple[int, object, int]]] = [[]]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for message in self._subscription:
            if message.value == STOP:
                return
            with self._news:
                life = self.lives[-1]
                if life and message.sequence <= life[-1][0]:
                    self.lives.append(life := [])
                life.append((message.sequence, message.value, message.gap))
                self._news.notify()

    def wait_for_life(self, number: int) -> None:
        """Returns when something of so many lives of the broker has come."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.lives) >= number and self.lives[-1], PATIENCE_S)

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_subscribers_go_on_over_restarts_of_the_broker_without_a_hole_and_without_a_double(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="publisher") as bus, clients.connect(daemon.url, name="reader") as reader:
        bus.declare(TOPIC, **RING)
        subscriber = Subscriber(reader)
        publisher = Publisher(bus)
        for number in range(BROKER_KILLS):
            publisher.wait_for(MESSAGES_PER_LIFE)
            # Who is slow to come back has had nothing yet of this life, and would have nothing of it at all.
            subscriber.wait_for_life(number + 1)
            assert daemon.process is not None
            # The reader is the last to come back.
            with reader._driver.lock:
                daemon.process.kill()
                daemon.start()
                publisher.wait_for(MESSAGES_MISSED)
        publisher.wait_for(MESSAGES_PER_LIFE)
        publisher.stop()
        bus.publish(TOPIC, STOP, ack="accepted")
        subscriber.join()
    assert len(subscriber.lives) == BROKER_KILLS + 1
    values = [value for life in subscriber.lives for _, value, _ in life]
    assert values == sorted(set(values)), "a message came twice, or out of order"
    for life in subscriber.lives:
        assert [sequence for sequence, _, _ in life] == list(range(1, len(life) + 1))
        assert {gap for _, _, gap in life} == {0}
    # What the last broker accepted is in its ring; of what an earlier one did, only the end can have died with it.
    accepted = lives_of(publisher.accepted)
    assert len(accepted) == BROKER_KILLS + 1
    received = [[value for _, value, _ in life if value not in publisher.unknown] for life in subscriber.lives]
    assert received[-1] == accepted[-1]
    for got, kept in zip(received, accepted, strict=True):
        assert got == kept[: len(got)]


def lives_of(accepted: list[tuple[int, int]]) -> list[list[int]]:
    """Accepted numbers by the broker that has accepted them: each begins to count anew."""
    lives: list[list[int]] = []
    last = 1 << 62
    for number, sequence in accepted:
        if sequence <= last:
            lives.append([])
        lives[-1].append(number)
        last = sequence
    return lives
