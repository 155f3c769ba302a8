"""What the broker costs as work grows: bytes for each connection and topic, calls for each subscriber."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from broker.limits import KIB
from broker.protocol.bodies import Hello, Subscribe, Topic, encode_body
from broker.protocol.frames import Frame, Kind
from broker.protocol.handshake import encode_greeting
from broker.state import BrokerState, Settings
from broker.state.records import SessionRecord
from tests.state.harness import SECOND_NS, feed

CONNECTIONS = 200
SUBSCRIPTIONS = 10
TOPICS = 10_000
INTERPRETER = 1.15
"""What is resident for each byte that is asked for: allocations are rounded up to 16 bytes, tables grow in steps."""


@pytest.fixture
def traced() -> Iterator[Callable[[], int]]:
    """Says how many bytes Python has allocated since the test began and not freed."""

    def held_bytes() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    gc.collect()
    tracemalloc.start()
    yield held_bytes
    tracemalloc.stop()


def connected(state: BrokerState, name: str) -> SessionRecord:
    """A session of the broker without the client's end, whose memory would count as well."""
    record = state.connect(f"test:{name}", SECOND_NS)
    feed(
        record.session,
        encode_greeting(Hello(name)),
        lambda received, now_ns: state.receive(record, received, now_ns),
        0,
    )
    return record


def sent(state: BrokerState) -> None:
    """Everything that waits leaves."""
    for record in state.take_ready():
        record.session.flush(lambda buffers: sum(len(buffer) for buffer in buffers))


def subscribed(state: BrokerState, record: SessionRecord, number: int, topic_filter: str) -> None:
    body = encode_body(Subscribe(topic_filter))
    state.receive(record, Frame(Kind.SUBSCRIBE, number=number, target=number, body=body), SECOND_NS)
    assert number in record.subscriptions


def published(state: BrokerState, record: SessionRecord, number: int) -> None:
    state.receive(record, Frame(Kind.PUBLISH, number=number, time_ns=1 << 60, payload=b"8 bytes."), SECOND_NS)


def named(state: BrokerState, record: SessionRecord, number: int, topic: str) -> None:
    state.receive(record, Frame(Kind.TOPIC, number=number, body=encode_body(Topic(topic))), SECOND_NS)


def test_a_connection_with_ten_subscriptions_takes_at_most_20_kib(traced: Callable[[], int]) -> None:
    state = BrokerState(Settings())
    connected(state, "first")
    sent(state)
    before = traced()
    for client in range(CONNECTIONS):
        record = connected(state, f"client-{client}")
        for number in range(1, SUBSCRIPTIONS + 1):
            subscribed(state, record, number, f"metrics/client-{client}/{number}")
        sent(state)
    assert (traced() - before) * INTERPRETER / CONNECTIONS <= 20 * KIB


def test_an_incomplete_frame_is_all_that_a_connection_keeps_of_what_it_receives(traced: Callable[[], int]) -> None:
    state = BrokerState(Settings())
    records = [connected(state, f"client-{number}") for number in range(20)]
    sent(state)
    before = traced()
    for record in records:
        feed(record.session, bytes([Kind.TOPIC, *bytes(40)]), lambda received, now_ns: None, 0)
    assert (traced() - before) / len(records) <= 128


def test_a_topic_with_its_publisher_and_its_last_message_takes_at_most_1_kib(traced: Callable[[], int]) -> None:
    state = BrokerState(Settings())
    record = connected(state, "publisher")
    sent(state)
    before = traced()
    for number in range(1, TOPICS + 1):
        named(state, record, number, f"parameters/rank-{number % 100}/tensor-{number}")
        published(state, record, number)
    sent(state)
    assert len(state.router.topics) > TOPICS
    assert (traced() - before) * INTERPRETER / TOPICS <= KIB


def test_topics_with_the_same_readers_share_their_routes() -> None:
    state = BrokerState(Settings())
    reader, publisher = connected(state, "reader"), connected(state, "publisher")
    subscribed(state, reader, 1, "a/#")
    for number, topic in enumerate(("a/1", "a/2", "b/1", "b/2"), 1):
        named(state, publisher, number, topic)
        published(state, publisher, number)
    routes = [state.router.topics[topic].routes for topic in ("a/1", "a/2", "b/1", "b/2")]
    assert routes[0] is routes[1]
    assert routes[2] is routes[3]
    assert routes[0] != routes[2]


def calls_of_fan_out(subscribers: int) -> int:
    """Calls, of Python and of C functions, from a PUBLISH to the last subscriber's bytes."""
    state = BrokerState(Settings())
    publisher = connected(state, "publisher")
    for reader in range(subscribers):
        subscribed(state, connected(state, f"reader-{reader}"), 1, "losses")
    named(state, publisher, 1, "losses")
    for _ in range(2):
        # The first message carries the topic's name to each reader.
        published(state, publisher, 1)
        sent(state)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    published(state, publisher, 1)
    sent(state)
    sys.setprofile(None)
    return calls


def test_a_fan_out_grows_no_faster_than_linearly() -> None:
    few, many = calls_of_fan_out(10), calls_of_fan_out(100)
    assert many <= 10 * few
