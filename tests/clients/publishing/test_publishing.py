"""Publishing and subscribing with both kinds of client, over every transport."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import clients
from broker.limits import SHARED_BYTES_MIN
from tests.clients.asynchronous import for_each
from tests.clients.conftest import Connect

PATIENCE_S = 60.0


@pytest.mark.parametrize(
    "value",
    [None, True, -7, 2.5, "text", b"\x00raw", [1, "two", None], {"nested": {"list": [1.5]}}, b"", "", [], {}],
    ids=repr,
)
def test_a_plain_value_arrives_as_it_was_published(bus: clients.Client, other: clients.Client, value: object) -> None:
    subscription = other.subscribe("values/#")
    bus.publish("values/one", value)
    message = subscription.next(PATIENCE_S)
    assert (message.value, message.topic, message.sender, message.sequence) == (value, "values/one", "first", 1)


@pytest.mark.parametrize("elements", [0, 1, 1000, 5000, 70_000, 3_000_000])
def test_an_array_of_any_length_arrives_with_every_bit(
    bus: clients.Client, other: clients.Client, elements: int
) -> None:
    subscription = other.subscribe("arrays/one")
    array = np.random.default_rng(1).standard_normal(elements).astype(np.float32)
    bus.publish("arrays/one", array)
    received = subscription.next(PATIENCE_S).value
    assert received.dtype == array.dtype
    assert np.array_equal(received, array)
    # Bytes that others may read as well are not to be written to.
    if received.flags.writeable:
        received[...] = 0
    else:
        assert received.nbytes >= SHARED_BYTES_MIN
        with pytest.raises(ValueError, match="read-only"):
            received[...] = 0


def test_bytes_longer_than_a_chunk_stay_bytes(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("raw")
    data = bytes(range(256)) * 4000
    bus.publish("raw", data)
    assert subscription.next(PATIENCE_S).value == data


def test_the_publisher_may_change_its_array_when_publish_has_returned(
    bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("arrays/changed")
    array = np.empty(700_000, np.int64)
    for step in range(5):
        array[...] = step
        bus.publish("arrays/changed", array)
    for step in range(5):
        received = subscription.next(PATIENCE_S).value
        assert (received == step).all(), f"message {step} was torn"


def test_an_array_that_the_application_keeps_is_never_overwritten(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("arrays/kept")
    kept = []
    for step in range(8):
        bus.publish("arrays/kept", np.full(300_000, step))
        kept.append(subscription.next(PATIENCE_S).value[10:20])
    assert [int(part[0]) for part in kept] == list(range(8))


def test_messages_of_one_publisher_arrive_in_order_whether_batched_or_not(
    bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("numbers", queue_messages=5000)
    for_each(
        bus.publish, [{"topic": "numbers", "value": number, "urgent": number % 700 == 0} for number in range(3000)]
    )
    bus.flush(PATIENCE_S)
    messages = for_each(subscription.next, [{"timeout_s": PATIENCE_S}] * 3000)
    assert [message.value for message in messages] == list(range(3000))
    assert [message.sequence for message in messages] == list(range(1, 3001))


def test_small_and_large_messages_of_one_publisher_keep_their_order(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("mixed")
    for number in range(20):
        bus.publish("mixed", np.full(100_000 if number % 3 == 0 else 10, number))
    assert [int(subscription.next(PATIENCE_S).value[0]) for _ in range(20)] == list(range(20))


def test_a_batch_leaves_without_any_further_call(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("burst", queue_messages=1000)
    for number in range(500):
        bus.publish("burst", number)
    received = [subscription.next(PATIENCE_S).value for _ in range(500)]
    assert received == list(range(500))


def test_an_acknowledged_message_gives_its_sequence(bus: clients.Client) -> None:
    assert bus.publish("acknowledged", 1, ack="accepted") == 1
    assert bus.publish("acknowledged", np.zeros(100_000), ack="accepted") == 2
    assert bus.publish("acknowledged", 3) is None


def test_headers_lane_and_time_travel_with_a_message(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("described")
    bus.publish("described", 1, headers={"step": "12"}, lane="bulk")
    message = subscription.next(PATIENCE_S)
    assert (dict(message.headers), message.lane) == ({"step": "12"}, "bulk")
    assert message.published_ns > 1_600_000_000 * 10**9


def test_filters_choose_what_arrives(bus: clients.Client, other: clients.Client) -> None:
    one_level = other.subscribe("metrics/+/loss")
    everything = other.subscribe("#")
    bus.publish("metrics/a/loss", 1)
    bus.publish("metrics/a/rate", 2)
    bus.publish("metrics/a/b/loss", 3)
    assert [everything.next(PATIENCE_S).value for _ in range(3)] == [1, 2, 3]
    assert one_level.next(PATIENCE_S).value == 1
    with pytest.raises(clients.TimeoutError):
        one_level.next(0.0)


def test_a_closed_subscription_gets_nothing_more_and_ends_its_iteration(
    bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("closing")
    bus.publish("closing", 1)
    bus.flush(PATIENCE_S)
    subscription.close()
    bus.publish("closing", 2)
    bus.flush(PATIENCE_S)
    assert [message.value for message in subscription] in ([], [1])
    with pytest.raises(clients.ConnectionClosed):
        subscription.next(1.0)


def test_replay_starts_with_what_is_retained(bus: clients.Client, other: clients.Client) -> None:
    for number in range(1, 6):
        bus.publish("retained", number, ack="accepted")
    everything = other.subscribe("retained", replay="all")
    assert [everything.next(PATIENCE_S).value for _ in range(5)] == [1, 2, 3, 4, 5]
    assert other.subscribe("retained", replay="latest").next(PATIENCE_S).value == 5
    since = other.subscribe("retained", replay=4)
    assert [since.next(PATIENCE_S).value for _ in range(2)] == [4, 5]
    with pytest.raises(clients.TimeoutError):
        other.subscribe("retained").next(0.0)


def test_a_queue_group_shares_messages_out(bus: clients.Client, connect: Connect) -> None:
    workers = [connect(f"worker-{number}").subscribe("tasks", queue_group="workers") for number in range(3)]
    for number in range(30):
        bus.publish("tasks", number, urgent=True)
    bus.flush(PATIENCE_S)
    shares = []
    for worker in workers:
        share = [worker.next(PATIENCE_S).value for _ in range(10)]
        assert share == sorted(share)
        shares += share
    assert sorted(shares) == list(range(30))


def test_a_handler_gets_every_message_on_another_thread(bus: clients.Client, other: clients.Client) -> None:
    received: list[object] = []
    finished = threading.Event()

    def handler(message: clients.Message) -> None:
        received.append(message.value)
        if message.value == 99:
            finished.set()
        if message.value == 50:
            raise ValueError("a handler's own mistake")

    other.subscribe("handled", handler=handler)
    for number in range(100):
        bus.publish("handled", number)
    assert finished.wait(PATIENCE_S)
    assert received == list(range(100))


def test_many_threads_publish_through_one_client(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("threads/+", queue_messages=10_000)

    def work(thread: int) -> None:
        for number in range(300):
            bus.publish(f"threads/{thread}", np.full(30_000, number) if number % 100 == 0 else number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    received: dict[str, list[int]] = {}
    for _ in range(1200):
        message = subscription.next(PATIENCE_S)
        number = message.value if isinstance(message.value, int) else int(message.value[0])
        received.setdefault(message.topic, []).append(number)
    for thread in threads:
        thread.join()
    assert received == {f"threads/{thread}": list(range(300)) for thread in range(4)}
