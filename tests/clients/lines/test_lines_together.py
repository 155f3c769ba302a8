"""Lines while clients come and go, and what the broker counts of them."""

from __future__ import annotations

import threading
from pathlib import Path
from random import Random

import pytest

import clients
from broker.protocol.line import AVAILABLE
from tests.clients.lines.lining import END, PATIENCE_S, begin, has_line, values
from tests.clients.serving import ServingThread

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_and_goes_each_message_arrives_once_and_in_order(
    broker: ServingThread,
    bus: clients.Client,
    other: clients.Client,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """A line ends and begins again dozens of times, at moments that nobody chooses."""
    # A topic that has lost its line gets the next one at once.
    monkeypatch.setattr("broker.state.topic_line.LINE_LASTING_MESSAGES", 0)
    monkeypatch.setattr("broker.state.lines.LINE_AGAIN_MESSAGES", 1)
    random = Random(seed)
    subscriptions = [other.subscribe("a", queue_messages=500), bus.subscribe("+", queue_messages=100_000)]
    found: list[list[clients.Message]] = [[], []]
    over = threading.Event()
    first = begin(bus)
    assert has_line(bus)

    def read(subscription: clients.Subscription, messages: list[clients.Message]) -> None:
        while (message := subscription.next(PATIENCE_S)).value != END:
            messages.append(message)

    def publish() -> None:
        own, number = Random(-seed), first
        while not over.is_set():
            kind = own.random()
            if kind < 0.005:
                bus.publish("a", [number] * 10_000, timeout_s=PATIENCE_S)
            elif kind < 0.02:
                bus.publish("a", number, ack="accepted", timeout_s=PATIENCE_S)
            elif kind < 0.4:
                bus.publish("a", number, timeout_s=PATIENCE_S)
            else:
                bus.publish("a", number, urgent=True, timeout_s=PATIENCE_S)
            number += 1
        bus.publish("a", END, timeout_s=PATIENCE_S)

    threads = [threading.Thread(target=read, args=pair) for pair in zip(subscriptions, found, strict=True)]
    threads.append(threading.Thread(target=publish))
    for thread in threads:
        thread.start()
    for _ in range(60):
        what = random.randrange(5)
        if what == 0:
            with other.subscribe("#", overflow="latest") as latest:
                latest.next(PATIENCE_S)
        elif what == 1:
            with clients.connect(broker.url) as third, third.subscribe("a") as mine:
                for _ in range(random.randrange(1, 50)):
                    mine.next(PATIENCE_S)
        elif what == 2:
            with clients.connect(broker.url) as second:
                second.publish("a", "foreign", ack="accepted")
        elif what == 3:
            other.declare("a", ring_messages=random.randrange(10, 2000))
        else:
            other.pressure("a")
    over.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    for messages in found:
        numbers = [value[0] if isinstance(value := message.value, list) else value for message in messages]
        assert [number for number in numbers if number != "foreign"] == list(
            range(len(numbers) - numbers.count("foreign"))
        )
        assert [message.sequence for message in messages] == list(range(1, len(messages) + 1))
    assert [m.value for m in found[0]] == [m.value for m in found[1]]


def counted(directory: Path, *, lines: bool) -> list[object]:
    """What a broker has counted and shows when the same was published and read, with lines and without."""
    with ServingThread(f"unix://{directory}/{lines}.sock") as broker:
        if not lines:
            broker.call(broker.server.state.own.lines.settle)
        with (
            clients.connect(broker.url, name="publisher") as bus,
            clients.connect(broker.url, name="reader") as other,
        ):
            plain, dropping = other.subscribe("a", queue_messages=500), other.subscribe("+", overflow="drop_oldest")
            first = begin(bus)
            assert has_line(bus) is lines
            for number in range(first, 300):
                bus.publish("a", number, headers={"n": str(number)} if number % 7 == 0 else None, urgent=True)
            assert values(plain, 256) == list(range(256))
            bus.flush(PATIENCE_S)
            other.flush(PATIENCE_S)
            topic = broker.call(lambda: broker.server.state.router.topics["a"])
            totals = broker.call(lambda: broker.server.state.totals())
            names = [name for name in dir(totals) if not name.startswith("_") and "session" not in name]
            numbers = {name: value for name in names if isinstance(value := getattr(totals, name), int)}
            for apart in ("received_bytes", "sent_bytes"):
                # Of the sockets.
                numbers.pop(apart)
            kept = topic.ring
            pressure = bus.pressure("a")
            assert not dropping.dropped
            return [
                numbers, topic.published, topic.published_bytes, kept.held_messages, kept.held_bytes,
                kept.next_sequence, pressure.publishers,
                [(r.filter, r.unread_messages, r.waiting_messages, r.dropped_messages) for r in pressure.subscriptions],
            ]  # fmt: skip


def test_the_broker_counts_the_same_with_lines_and_without(tmp_path: Path) -> None:
    assert counted(tmp_path, lines=True) == counted(tmp_path, lines=False)
