"""Arrays in shared memory over lines: in order, whole, and never written to while somebody reads them."""

from __future__ import annotations

import gc
import os
import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

import clients
from broker.limits import LINE_AFTER_MESSAGES, MIB
from broker.protocol.line import AVAILABLE, RELEASES
from tests.clients.lines.lining import PATIENCE_S, has_line, lines_of
from tests.clients.serving import ServingThread

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")

NUMBERS = 12_500
"""Elements of an array of 100,000 bytes."""


def array_of(number: int, length: int = NUMBERS) -> np.ndarray:
    return np.full(length, number)


def begin(bus: clients.Client, length: int = NUMBERS) -> int:
    """Publishes arrays until their topic has a line; returns how many that took."""
    for number in range(100 * LINE_AFTER_MESSAGES):
        bus.publish("a", array_of(number, length), timeout_s=PATIENCE_S)
        bus.flush(PATIENCE_S)
        if has_line(bus):
            return number + 1
    raise AssertionError("there is no line")


def is_whole(array: np.ndarray) -> bool:
    return not array.flags.writeable and bool((array == array[0]).all())


def firsts(subscription: clients.Subscription, count: int) -> list[int]:
    found = []
    for _ in range(count):
        array = subscription.next(PATIENCE_S).value
        assert is_whole(array)
        found.append(int(array[0]))
    return found


def lent(bus: clients.Client) -> int:
    with bus._driver.lock:
        return len(bus._core.arenas._lent)


def wait_until(bus: clients.Client, condition: Callable[[], bool]) -> None:
    """Looks again after each answer of the broker's."""
    while not condition():
        bus.flush(PATIENCE_S)
        gc.collect()


@pytest.mark.parametrize("in_place", [False, True], ids=["copied", "in place"])
def test_arrays_come_in_order_and_whole_and_their_memory_goes_round(
    broker: ServingThread, bus: clients.Client, other: clients.Client, in_place: bool
) -> None:
    subscription = other.subscribe("a", queue_messages=1000)
    first, found = begin(bus), []
    reading = threading.Thread(target=lambda: found.extend(firsts(subscription, first + 2000)))
    reading.start()
    for number in range(first, first + 2000):
        array = array_of(number)
        if in_place:
            own = bus.empty(array.shape, array.dtype)
            own[:] = array
            array = own
        bus.publish("a", array, timeout_s=PATIENCE_S)
    assert has_line(bus)
    reading.join(PATIENCE_S)
    assert found == list(range(first + 2000))
    assert lines_of(broker) == 1
    assert bus._core.arenas._held_bytes < 2000 * array.nbytes


def test_who_comes_later_finds_what_the_topic_keeps_as_it_was(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    other.declare("a", ring_messages=5, ring_bytes=64 * MIB)
    subscription = other.subscribe("a", queue_messages=1000)
    last = begin(bus)
    firsts(subscription, last)
    for _ in range(8):
        # So many that the line has lasted, and the next one comes soon.
        for number in range(last, last + 80):
            bus.publish("a", array_of(number), timeout_s=PATIENCE_S)
            firsts(subscription, 1)
        last += 80
        with other.subscribe("a", replay="all") as late:
            assert firsts(late, 5) == list(range(last - 5, last))
        while not has_line(bus):
            bus.publish("a", array_of(last), timeout_s=PATIENCE_S)
            bus.flush(PATIENCE_S)
            firsts(subscription, 1)
            last += 1


def test_memory_comes_back_from_a_line_without_a_word_of_the_brokers(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    other.declare("a", ring_messages=2)
    subscription = other.subscribe("a", queue_messages=1000)
    first = begin(bus)
    firsts(subscription, first)
    bus.flush(PATIENCE_S)
    with bus._driver.lock:
        before = bus._core.arenas._last_loan
    for number in range(first, first + 10):
        bus.publish("a", array_of(number), timeout_s=PATIENCE_S)
        firsts(subscription, 1)
    gc.collect()
    with bus._driver.lock:
        bus._core.take_back()
        assert len([loan for loan in bus._core.arenas._lent if loan > before]) == 2


def test_a_reader_that_keeps_arrays_finds_them_as_they_were(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=1000)
    held: deque[np.ndarray] = deque()
    torn: list[int] = []
    first = begin(bus)

    def read() -> None:
        for number in range(first + 1000):
            held.append(subscription.next(PATIENCE_S).value)
            torn.extend(number for each in (held[0], held[-1]) if not is_whole(each))
            if int(held[-1][0]) != number or int(held[0][0]) != number - len(held) + 1:
                torn.append(number)
            if len(held) > 40:
                held.popleft()

    reading = threading.Thread(target=read)
    reading.start()
    for number in range(first, first + 1000):
        bus.publish("a", array_of(number), timeout_s=PATIENCE_S)
    reading.join(PATIENCE_S)
    assert not reading.is_alive()
    assert torn == []
    held.clear()
    bus.declare("a", retain=False)
    wait_until(bus, lambda: not lent(bus))


def test_what_was_kept_beyond_its_line_comes_back_too(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=1000)
    first = begin(bus)
    for number in range(first, first + 5):
        bus.publish("a", array_of(number))
    kept = [subscription.next(PATIENCE_S).value for _ in range(first + 5)]
    other.publish("a", b"another publisher", ack="accepted")
    assert lines_of(broker) == 0
    bus.declare("a", retain=False)
    bus.flush(PATIENCE_S)
    assert all(is_whole(each) for each in kept)
    wait_until(bus, lambda: lent(bus) == len(kept))
    del kept[2:]
    wait_until(bus, lambda: lent(bus) == 2)
    kept.clear()
    wait_until(bus, lambda: not lent(bus))


def test_more_arrays_than_a_place_has_room_for_are_let_go_of(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    length = 4096
    subscription = other.subscribe("a", queue_messages=1000)
    first = begin(bus, length)
    count = RELEASES + 100
    for number in range(first, first + count):
        bus.publish("a", array_of(number, length), timeout_s=PATIENCE_S)
    kept = [subscription.next(PATIENCE_S).value for _ in range(first + count)]
    assert [int(each[0]) for each in kept] == list(range(first + count))
    kept.clear()
    bus.declare("a", retain=False)
    wait_until(bus, lambda: not lent(bus))


def test_a_second_subscriber_joins_in_mid_stream_and_none_misses_anything(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=1000)
    first = begin(bus)
    count, found, joined = 1500, [], []
    over = threading.Event()

    def read() -> None:
        found.extend(firsts(subscription, first + count))

    def join() -> None:
        with clients.connect(broker.url) as third:
            while not over.is_set():
                with third.subscribe("a", queue_messages=1000) as mine:
                    numbers = firsts(mine, 30)
                    joined.append(numbers == list(range(numbers[0], numbers[0] + 30)))

    threads = [threading.Thread(target=read), threading.Thread(target=join)]
    for thread in threads:
        thread.start()
    number = first
    while number < first + count:
        bus.publish("a", array_of(number), timeout_s=PATIENCE_S)
        number += 1
    threads[0].join(PATIENCE_S)
    over.set()
    while threads[1].is_alive():
        bus.publish("a", array_of(number), timeout_s=PATIENCE_S)
        number += 1
    assert found == list(range(first + count))
    assert joined
    assert all(joined)


def test_small_messages_and_arrays_of_one_topic_go_over_its_line(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=1000)
    first = begin(bus)
    for number in range(first, first + 100):
        bus.publish("a", number if number % 2 else array_of(number), urgent=True)
    assert has_line(bus)
    values = [subscription.next(PATIENCE_S).value for _ in range(first + 100)][first:]
    assert [value if isinstance(value, int) else int(value[0]) for value in values] == list(range(first, first + 100))
    assert lines_of(broker) == 1


def test_an_acknowledged_array_has_its_sequence_from_the_line(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=1000)
    first = begin(bus)
    assert bus.publish("a", array_of(first), ack="accepted") == first + 1
    assert has_line(bus)
    assert firsts(subscription, first + 1) == list(range(first + 1))


def test_arrays_of_another_length_need_not_end_the_line(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=1000)
    first = begin(bus)
    (number,) = broker.call(lambda: list(broker.server.state.router.lines))
    for length in (5000, 50_000, 100_000):
        bus.publish("a", array_of(first, length), timeout_s=PATIENCE_S)
        first += 1
    assert firsts(subscription, first) == list(range(first))
    assert broker.call(lambda: list(broker.server.state.router.lines)) == [number]


def test_an_array_that_is_too_long_for_its_readers_credit_goes_by_the_socket(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=1000, queue_bytes=16 * MIB)
    first = begin(bus, 4096)
    bus.publish("a", array_of(first, MIB // 2 + 1), timeout_s=PATIENCE_S)
    assert not has_line(bus)
    assert firsts(subscription, first + 1) == list(range(first + 1))


def test_arrays_outlive_the_session_in_which_they_came_on_a_line(broker: ServingThread, bus: clients.Client) -> None:
    with clients.connect(broker.url) as reader:
        subscription = reader.subscribe("a", queue_messages=1000)
        first = begin(bus)
        for number in range(first, first + 5):
            bus.publish("a", array_of(number))
        kept = [subscription.next(PATIENCE_S).value for _ in range(first + 5)]
    bus.declare("a", retain=False)
    wait_until(bus, lambda: not lent(bus))
    for number in range(200):
        bus.publish("a", array_of(1000 + number), timeout_s=PATIENCE_S)
    assert [int(each[0]) for each in kept] == list(range(first + 5))
    assert all(is_whole(each) for each in kept)


def test_a_forked_child_lets_go_of_nothing_of_its_parents(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a", queue_messages=1000)
    first = begin(bus)
    bus.publish("a", array_of(first))
    kept = [subscription.next(PATIENCE_S).value for _ in range(first + 1)]
    child = os.fork()
    if not child:
        kept.clear()
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    bus.declare("a", retain=False)
    bus.flush(PATIENCE_S)
    bus.flush(PATIENCE_S)
    assert lent(bus) == len(kept)
    for number in range(200):
        bus.publish("b", array_of(1000 + number), timeout_s=PATIENCE_S)
    assert [int(each[0]) for each in kept] == list(range(first + 1))
