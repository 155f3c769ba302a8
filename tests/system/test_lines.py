"""Lines between real processes, each of which is killed or stopped while messages are on them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from broker.protocol.line import AVAILABLE
from tests.daemon import Daemon, Process

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")

PATIENCE_S = 50.0
TOPIC = "numbers"
END = "end"
WRITER, READER = "tests.system.line_writer", "tests.system.line_reader"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(listen=[f"unix://{tmp_path}/broker.sock"], admin="off") as serving:
        yield serving


def wait_for_line(writer: Process) -> None:
    while writer.read_line() != "line":
        pass


def wait_for_the_end_of(sessions: clients.Subscription, name: str) -> None:
    while (event := sessions.next(PATIENCE_S).value)["event"] != "closed" or event["name"] != name:
        pass


def until_end(subscription: clients.Subscription) -> list[clients.Message]:
    messages = []
    while (message := subscription.next(PATIENCE_S)).value != END:
        messages.append(message)
    return messages


def values(messages: list[clients.Message]) -> list[object]:
    return [message.value for message in messages]


@pytest.mark.parametrize("moment", range(6))
def test_a_killed_publisher_loses_nothing_that_it_had_published(daemon: Daemon, moment: int) -> None:
    with clients.connect(daemon.url) as bus:
        numbers, sessions = bus.subscribe(TOPIC, queue_messages=100_000), bus.subscribe("$sys/sessions")
        with Process(daemon.url, TOPIC, "0", module=WRITER) as writer:
            wait_for_line(writer)
            for _ in range(moment):
                writer.read_line()
            writer.kill()
            told = [int(line) for line in writer.read_rest().decode().split("\n")[:-1]]
        wait_for_the_end_of(sessions, "writer")
        bus.publish(TOPIC, END)
        messages = until_end(numbers)
    assert values(messages) == list(range(len(messages)))
    assert [message.sequence for message in messages] == list(range(1, len(messages) + 1))
    # All of what it had told of is there, though it never flushed.
    assert not told or len(messages) > told[-1]


def test_a_stopped_publisher_holds_up_nobody(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as other:
        numbers = bus.subscribe(TOPIC, queue_messages=100_000)
        with Process(daemon.url, TOPIC, "0", module=WRITER) as writer:
            wait_for_line(writer)
            for _ in range(3):
                writer.read_line()
            writer.signal(signal.SIGSTOP)
            other.publish(TOPIC, END, ack="accepted")
            before = until_end(numbers)
            assert values(before) == list(range(len(before)))
            writer.signal(signal.SIGCONT)
            after = [numbers.next(PATIENCE_S) for _ in range(100)]
            assert values(after) == list(range(len(before), len(before) + 100))
            writer.kill()


def test_a_stopped_reader_holds_up_nobody_but_its_publisher_and_misses_nothing(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        numbers = bus.subscribe(TOPIC, queue_messages=100_000)
        with Process(daemon.url, TOPIC, module=READER) as reader:
            assert reader.read_line() == "subscribed"
            with Process(daemon.url, TOPIC, "20000", module=WRITER) as writer:
                wait_for_line(writer)
                reader.signal(signal.SIGSTOP)
                while not bus.pressure(TOPIC).blocked_publishers:
                    pass
                got = [numbers.next(PATIENCE_S).value for _ in range(1000)]
                reader.signal(signal.SIGCONT)
                writer.wait()
            bus.publish(TOPIC, END)
            assert [*got, *values(until_end(numbers))] == list(range(20_000))
            lines = reader.read_rest().decode().split("\n")
    assert lines[-2] == "end 20001"
    assert not [line for line in lines if line.startswith("out of order")]


@pytest.mark.parametrize("moment", range(4))
def test_a_killed_reader_costs_others_nothing(daemon: Daemon, moment: int) -> None:
    with clients.connect(daemon.url) as bus:
        numbers = bus.subscribe(TOPIC, queue_messages=100_000)
        with Process(daemon.url, TOPIC, module=READER) as reader:
            assert reader.read_line() == "subscribed"
            with Process(daemon.url, TOPIC, "3000", module=WRITER) as writer:
                wait_for_line(writer)
                for _ in range(moment):
                    reader.read_line()
                reader.kill()
                writer.wait()
        bus.publish(TOPIC, END)
        assert values(until_end(numbers)) == list(range(3000))


def test_while_the_broker_is_stopped_messages_go_on_and_afterwards_it_has_them_all(daemon: Daemon) -> None:
    assert daemon.process is not None
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as other:
        numbers = other.subscribe("a", queue_messages=1000)
        for number in range(8):
            bus.publish("a", number, urgent=True)
        bus.flush(PATIENCE_S)
        bus.flush(PATIENCE_S)
        assert bus._core.outgoing.topics["a"].line is not None
        daemon.process.signal(signal.SIGSTOP)
        for number in range(8, 200):
            bus.publish("a", number, urgent=True)
        assert [numbers.next(PATIENCE_S).value for _ in range(200)] == list(range(200))
        daemon.process.signal(signal.SIGCONT)
        assert bus.publish("a", END, ack="accepted") == 201
        with other.subscribe("a", replay="all") as kept:
            assert [kept.next(PATIENCE_S).sequence for _ in range(201)] == list(range(1, 202))


def test_when_the_broker_is_killed_readers_finish_the_line_and_then_all_begins_anew(daemon: Daemon) -> None:
    assert daemon.process is not None
    published, subscribed = threading.Event(), threading.Event()
    told: list[clients.Reconnected] = []

    def publisher_is_back(event: clients.Reconnected) -> None:
        told.append(event)
        published.set()

    with (
        clients.connect(daemon.url, on_reconnect=publisher_is_back) as bus,
        clients.connect(daemon.url, on_reconnect=lambda event: subscribed.set()) as other,
    ):
        numbers = other.subscribe("a", queue_messages=1000)
        for number in range(8):
            bus.publish("a", number, urgent=True)
        bus.flush(PATIENCE_S)
        bus.flush(PATIENCE_S)
        assert bus._core.outgoing.topics["a"].line is not None
        daemon.process.signal(signal.SIGSTOP)
        for number in range(8, 100):
            bus.publish("a", number, urgent=True)
        daemon.process.kill()
        daemon.start()
        assert published.wait(PATIENCE_S)
        assert subscribed.wait(PATIENCE_S)
        assert bus._core.outgoing.topics["a"].line is None
        assert told[0].lost_messages_max >= 92
        bus.publish("a", END)
        messages = until_end(numbers)
    assert values(messages) == list(range(100))


def test_a_slow_reader_with_drop_oldest_has_the_newest_and_knows_of_the_rest(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        numbers = bus.subscribe(TOPIC, overflow="drop_oldest", queue_messages=100)
        with Process(daemon.url, TOPIC, "5000", module=WRITER) as writer:
            writer.wait()
        bus.publish(TOPIC, END, ack="accepted")
        messages = until_end(numbers)
        assert values(messages) == sorted(values(messages))
        assert len(messages) + numbers.dropped == 5000
        assert sum(message.gap for message in messages) <= numbers.dropped
        # The client tells of the last ones within a tenth of a second.
        while bus.pressure(TOPIC).subscriptions[0].dropped_messages != numbers.dropped:
            pass
