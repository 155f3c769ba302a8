"""Lines: small messages go from their publisher to their readers, and nobody can tell but by the time that it takes."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import clients
from broker.limits import LINE_AFTER_MESSAGES
from broker.protocol.line import AVAILABLE
from tests.clients.asynchronous import AsyncLoop
from tests.clients.lines.lining import END, PATIENCE_S, begin, has_line, lines_of, rest, values
from tests.clients.serving import ServingThread
from tests.descriptors import opened

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


def test_a_topic_that_is_read_by_those_who_can_gets_a_line(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a")
    first = begin(bus)
    assert has_line(bus)
    assert lines_of(broker) == 1
    for number in range(first, 200):
        bus.publish("a", number, urgent=True)
    messages = [subscription.next(PATIENCE_S) for _ in range(200)]
    assert [message.value for message in messages] == list(range(200))
    assert [message.sequence for message in messages] == list(range(1, 201))
    assert {(message.sender, message.lane, message.gap) for message in messages} == {("publisher", "default", 0)}
    assert has_line(bus)


def test_what_is_written_to_a_line_does_not_pass_the_socket(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a")
    first = begin(bus)
    sent_bytes = bus._core.session.sent_bytes
    bus.publish("a", b"x" * 1000, urgent=True)
    assert bus._core.session.sent_bytes == sent_bytes
    assert values(subscription, first + 1)[-1] == b"x" * 1000


def test_headers_acknowledgements_and_batches_come_on_a_line_as_they_come_by_the_socket(
    bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=10_000)
    first = begin(bus)
    bus.publish("a", "headed", headers={"k": "v"})
    assert bus.publish("a", "acknowledged", ack="accepted") == first + 2
    for number in range(500):
        bus.publish("a", number)
    bus.flush(PATIENCE_S)
    values(subscription, first)
    headed = subscription.next(PATIENCE_S)
    assert headed.headers == {"k": "v"}
    assert [headed.value, *values(subscription, 501)] == ["headed", "acknowledged", *range(500)]
    assert bus.publish("a", "next", ack="accepted") == first + 503


def test_every_reader_gets_everything_and_so_does_each_of_its_subscriptions(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    with clients.connect(broker.url, name="third") as third:
        subscriptions = [other.subscribe("a"), other.subscribe("+"), third.subscribe("#"), bus.subscribe("a")]
        first = begin(bus)
        assert has_line(bus)
        for number in range(first, 300):
            bus.publish("a", number, urgent=True)
        for subscription in subscriptions:
            assert values(subscription, 300) == list(range(300))


@pytest.mark.parametrize(
    "options",
    [
        {"overflow": "latest"},
        {"overflow": "drop_newest"},
        {"overflow": "drop_oldest", "max_lag": 3},
        {"queue_messages": 16},
        {"queue_group": "g"},
    ],
)
def test_who_needs_the_broker_keeps_it(bus: clients.Client, other: clients.Client, options: dict[str, object]) -> None:
    with other.subscribe("a", **options):
        begin(bus)
        assert not has_line(bus)


def test_without_shared_memory_there_is_no_line(broker: ServingThread, bus: clients.Client) -> None:
    with clients.connect(broker.url, shared_memory=False) as plain:
        subscription = plain.subscribe("a")
        first = begin(bus)
        assert not has_line(bus)
        assert values(subscription, first) == list(range(first))


def test_nothing_that_asks_can_tell_that_the_broker_reads_later(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    unread = other.subscribe("a", queue_messages=5000)
    first = begin(bus)
    for number in range(first, 100):
        bus.publish("a", number, urgent=True)
    bus.flush(PATIENCE_S)
    assert bus.publish("a", "n", ack="accepted") == 101
    pressure = other.pressure("a")
    assert [reader.unread_messages for reader in pressure.subscriptions] == [101]
    for number in range(10):
        bus.publish("a", number, urgent=True)
    counted = broker.call(lambda: broker.server.state.totals())
    assert counted.delivered_messages >= 111
    assert broker.call(lambda: broker.server.state.router.topics["a"].published) == 111
    # A new subscription begins behind all that was published, and can ask for it.
    replayed = other.subscribe("a", replay="all")
    assert values(replayed, 111) == [*range(100), "n", *range(10)]
    latest = other.subscribe("a", replay="latest")
    assert latest.next(PATIENCE_S).value == 9
    assert values(unread, 111) == [*range(100), "n", *range(10)]


@pytest.mark.parametrize("what", ["another publisher", "another reader", "an array", "a lane", "a policy", "a request"])
def test_whatever_ends_a_line_comes_behind_what_was_on_it(
    broker: ServingThread, bus: clients.Client, other: clients.Client, what: str
) -> None:
    subscription = other.subscribe("a", queue_messages=5000)
    written = begin(bus)
    assert has_line(bus)
    for number in range(written, 300):
        bus.publish("a", number, urgent=True)
    expected: list[object] = list(range(300))
    if what == "another publisher":
        other.publish("a", "other")
        expected.append("other")
    elif what == "another reader":
        broker_side = bus.subscribe("+", overflow="latest")
        bus.publish("a", "more", urgent=True)
        assert broker_side.next(PATIENCE_S).value == "more"
        expected.append("more")
    elif what == "an array":
        bus.publish("a", np.arange(100_000))
    elif what == "a lane":
        bus.publish("a", "bulk", lane="bulk")
        expected.append("bulk")
    elif what == "a policy":
        other.declare("a", max_message_bytes=100)
        bus.flush(PATIENCE_S)
        with pytest.raises(clients.LimitExceeded):
            bus.publish("a", b"x" * 200)
    else:
        with pytest.raises(clients.BrokerError):
            bus.request("a", "question", timeout_s=PATIENCE_S)
    bus.flush(PATIENCE_S)
    assert lines_of(broker) == 0
    bus.publish("a", END)
    found = [subscription.next(PATIENCE_S) for _ in range(len(expected) + (what == "an array") + 1)]
    if what == "a lane":
        # What is in bulk lets the end pass.
        found.sort(key=lambda message: message.sequence)
    if what == "an array":
        assert np.array_equal(found.pop(-2).value, np.arange(100_000))
    assert [message.value for message in found] == [*expected, END]
    assert [message.sequence for message in found] == sorted(message.sequence for message in found)


def test_after_a_line_has_ended_the_topic_gets_another_one(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=5000)
    begin(bus)
    with other.subscribe("a", overflow="latest"):
        bus.publish("a", "x", urgent=True)
        bus.flush(PATIENCE_S)
        assert not has_line(bus)
    for number in range(LINE_AFTER_MESSAGES * 4):
        bus.publish("a", number, urgent=True)
    bus.flush(PATIENCE_S)
    bus.flush(PATIENCE_S)
    assert has_line(bus)
    bus.publish("a", END, urgent=True)
    assert rest(subscription) == [*range(LINE_AFTER_MESSAGES), "x", *range(LINE_AFTER_MESSAGES * 4)]


def test_a_reader_that_does_not_read_gets_what_its_queue_keeps_and_holds_the_publisher_back(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=64)
    first = begin(bus)
    assert has_line(bus)
    done = threading.Event()

    def publish() -> None:
        for number in range(first, 6000):
            bus.publish("a", number, urgent=True, timeout_s=PATIENCE_S)
        bus.publish("a", END)
        done.set()

    thread = threading.Thread(target=publish)
    thread.start()
    while not other.pressure("a").blocked_publishers:
        pass
    assert not done.is_set()
    assert subscription.pending <= 64
    assert rest(subscription) == list(range(6000))
    thread.join(PATIENCE_S)
    assert done.is_set()


def test_drop_oldest_keeps_the_newest_and_counts_the_rest(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a", overflow="drop_oldest", queue_messages=64)
    first = begin(bus)
    assert has_line(bus)
    for number in range(first, 3000):
        bus.publish("a", number, urgent=True)
    bus.flush(PATIENCE_S)
    bus.publish("a", END, ack="accepted")
    other.flush(PATIENCE_S)
    messages = []
    while not messages or messages[-1].value != END:
        messages.append(subscription.next(PATIENCE_S))
    found = [message.value for message in messages]
    assert found[:-1] == sorted(found[:-1])
    assert len(found) + subscription.dropped == 3001
    assert sum(message.gap for message in messages) == subscription.dropped
    assert [m.sequence for m in messages] == sorted(m.sequence for m in messages)


def test_who_drops_the_oldest_goes_on_reading_however_much_comes(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a", overflow="drop_oldest", queue_messages=64, queue_bytes=1 << 18)
    first = begin(bus)
    for number in range(1500):
        bus.publish("a", bytes(1000), urgent=True)
        if not number % 50:
            other.flush(PATIENCE_S)
    assert has_line(bus)
    bus.flush(PATIENCE_S)
    other.flush(PATIENCE_S)
    assert subscription.pending == 64
    assert subscription.dropped == first + 1500 - 64


def test_a_reader_whose_connection_is_lost_goes_on_where_it_was(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    heard = threading.Event()
    with clients.connect(broker.url, name="lost", on_reconnect=lambda event: heard.set()) as lost:
        subscription = lost.subscribe("a", queue_messages=5000)
        first = begin(bus)
        assert has_line(bus)
        for number in range(first, 100):
            bus.publish("a", number, urgent=True)
        broker.cut_off("lost")
        for number in range(100, 200):
            bus.publish("a", number, urgent=True)
        assert heard.wait(PATIENCE_S)
        for number in range(200, 300):
            bus.publish("a", number, urgent=True)
        messages = [subscription.next(PATIENCE_S) for _ in range(300)]
    assert [message.value for message in messages] == list(range(300))
    assert sum(message.gap for message in messages) == 0


def test_a_publisher_whose_connection_is_lost_has_published_what_it_has_written(
    broker: ServingThread, other: clients.Client
) -> None:
    heard = threading.Event()
    told: list[clients.Reconnected] = []

    def on_reconnect(event: clients.Reconnected) -> None:
        told.append(event)
        heard.set()

    with clients.connect(broker.url, name="lost", on_reconnect=on_reconnect) as lost:
        subscription = other.subscribe("a", queue_messages=5000)
        first = begin(lost)
        assert has_line(lost)
        for number in range(first, 100):
            lost.publish("a", number, urgent=True)
        broker.cut_off("lost")
        assert heard.wait(PATIENCE_S)
        assert not has_line(lost)
        lost.publish("a", END, urgent=True)
        assert rest(subscription) == list(range(100))
        assert told[0].lost_messages_max >= 100 - first


def test_a_forked_child_leaves_its_parents_lines_alone(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a")
    first = begin(bus)
    bus.publish("a", "before", urgent=True)
    child = os.fork()
    if not child:
        try:
            bus.publish("a", "child")
        except clients.ConnectionClosed:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    bus.publish("a", END, urgent=True)
    assert rest(subscription) == [*range(first), "before"]


def test_a_closed_client_leaves_no_line_and_no_descriptor(broker: ServingThread, bus: clients.Client) -> None:
    bus.publish("warm", 1)
    bus.flush(PATIENCE_S)
    before = len(opened())
    for round_ in range(5):
        with clients.connect(broker.url) as reader, clients.connect(broker.url) as writer:
            subscription = reader.subscribe(f"t/{round_}")
            first = begin(writer, f"t/{round_}")
            assert has_line(writer, f"t/{round_}")
            assert values(subscription, first) == list(range(first))
    bus.flush(PATIENCE_S)
    bus.flush(PATIENCE_S)
    assert lines_of(broker) == 0
    assert len(opened()) <= before


def test_of_many_topics_a_session_has_as_many_lines_as_it_may(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("t/#", queue_messages=5000)
    for number in range(20):
        begin(bus, f"t/{number}")
    assert lines_of(broker) == 16
    for number in range(20):
        bus.publish(f"t/{number}", END, urgent=True)
    found: dict[str, list[object]] = {}
    while len([True for seen in found.values() if seen[-1] == END]) < 20:
        message = subscription.next(PATIENCE_S)
        found.setdefault(message.topic, []).append(message.value)
    assert all(seen == [*range(LINE_AFTER_MESSAGES), END] for seen in found.values())


def test_an_asynchronous_client_writes_and_reads_lines(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    loop = AsyncLoop()
    try:
        third = loop.connect(broker.url, name="asynchronous")
        here, there = other.subscribe("b", queue_messages=5000), third.subscribe("a", queue_messages=5000)
        first = begin(bus)
        assert has_line(bus)
        for number in range(first, 300):
            bus.publish("a", number, urgent=True)
        assert values(there, 300) == list(range(300))
        for number in range(LINE_AFTER_MESSAGES):
            third.publish("b", number, urgent=True)
        third.flush(PATIENCE_S)
        third.flush(PATIENCE_S)
        assert lines_of(broker) == 2
        for number in range(LINE_AFTER_MESSAGES, 300):
            third.publish("b", number, urgent=True)
        assert values(here, 300) == list(range(300))
        assert lines_of(broker) == 2
        third.close()
    finally:
        loop.close()


def test_a_handler_gets_what_comes_on_a_line(bus: clients.Client, other: clients.Client) -> None:
    found: list[object] = []
    over = threading.Event()

    def handle(message: clients.Message) -> None:
        found.append(message.value)
        if message.value == END:
            over.set()

    other.subscribe("a", handler=handle)
    first = begin(bus)
    assert has_line(bus)
    for number in range(first, 50):
        bus.publish("a", number, urgent=True)
    bus.publish("a", END, urgent=True)
    assert over.wait(PATIENCE_S)
    assert found == [*range(50), END]
