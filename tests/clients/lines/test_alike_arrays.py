"""The shortest way of arrays that are like the one before: which go it, and that what arrives is what was published."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import clients
from broker.errors import ConnectionClosed, LimitExceeded
from broker.protocol.line import AVAILABLE
from clients.publishing.alike import publish_alike
from tests.clients.lines.lining import PATIENCE_S
from tests.clients.lines.test_line_arrays import NUMBERS, begin
from tests.clients.serving import ServingThread

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


@pytest.fixture
def reader(bus: clients.Client, other: clients.Client) -> clients.Subscription:
    """What reads `a`, on which there is a line, and an array like those that follow was published."""
    subscription = other.subscribe("a", queue_messages=1000)
    for _ in range(begin(bus)):
        subscription.next(PATIENCE_S)
    return subscription


def of(number: int) -> np.ndarray:
    return np.full(NUMBERS, float(number))


def lent(bus: clients.Client, number: int) -> np.ndarray:
    array = bus.empty(NUMBERS, "float64")
    array[:] = number
    return array


def goes(bus: clients.Client, array: np.ndarray, topic: str = "a", lane: str | None = None) -> bool:
    """Publishes it; says whether by the shortest way."""
    if publish_alike(bus._driver, topic, lane, array):
        return True
    bus.publish(topic, array, lane=lane, timeout_s=PATIENCE_S)
    return False


def same(found: object, array: np.ndarray) -> bool:
    return isinstance(found, np.ndarray) and found.dtype == array.dtype and np.array_equal(found, array)


def test_arrays_that_were_lent_and_copies_of_others_go_it(bus: clients.Client, reader: clients.Subscription) -> None:
    array, other = lent(bus, 1), of(2)
    assert goes(bus, array)
    assert goes(bus, other, lane="default")
    assert not array.flags.writeable
    assert other.flags.writeable
    # It may be published again, and the other one be changed.
    assert goes(bus, array)
    other[:] = 3
    assert goes(bus, other)
    values = [reader.next(PATIENCE_S).value for _ in range(4)]
    assert [value[0] for value in values] == [1, 2, 1, 3]
    assert all(same(value, of(int(value[0]))) and not value.flags.writeable for value in values)
    assert np.shares_memory(values[0], values[2])


@pytest.mark.parametrize(
    ("changed", "shortest"),
    [
        (lambda array: array.reshape(-1, 4).copy(), True),
        (lambda array: array.astype(np.int64), True),
        # Of another length: its arena is one of which the broker has to be told first.
        (lambda array: array.astype(np.int32), False),
        # A copy of what is not of the machine's order, or not contiguous, is made the long way.
        (lambda array: array.astype(">f8"), False),
        (lambda array: array.reshape(-1, 100).T, False),
        (lambda array: np.asfortranarray(array.reshape(-1, 100)), False),
        (lambda array: array[::2], False),
        (lambda array: array[1:-1], True),
        (lambda array: array[:0].copy(), False),
        (lambda array: np.array(1.5), False),
    ],
)
def test_one_that_is_not_like_the_one_before_arrives_as_it_is(
    bus: clients.Client,
    reader: clients.Subscription,
    changed: Callable[[np.ndarray], np.ndarray],
    shortest: bool,
) -> None:
    array = np.arange(NUMBERS, dtype=np.float64)
    assert goes(bus, array)
    other = changed(array)
    assert goes(bus, other) == shortest
    assert goes(bus, array) or not shortest
    assert same(reader.next(PATIENCE_S).value, array)
    assert same(reader.next(PATIENCE_S).value, other)
    assert same(reader.next(PATIENCE_S).value, array)


def test_an_array_whose_shape_was_set_after_it_was_lent_has_that_shape(
    bus: clients.Client, reader: clients.Subscription
) -> None:
    goes(bus, lent(bus, 1))
    array = lent(bus, 2)
    array.shape = (NUMBERS // 10, 10)
    assert goes(bus, array)
    assert not array.flags.writeable
    reader.next(PATIENCE_S)
    assert same(reader.next(PATIENCE_S).value, array)


def test_an_array_that_another_client_has_lent_is_copied_and_stays_writable(
    broker: ServingThread, bus: clients.Client, reader: clients.Subscription
) -> None:
    with clients.connect(broker.url) as stranger:
        array = lent(stranger, 4)
        assert goes(bus, array)
        assert array.flags.writeable
        array[:] = 5
        assert reader.next(PATIENCE_S).value[0] == 4


def test_an_array_of_a_former_session_is_copied(
    broker: ServingThread, bus: clients.Client, reader: clients.Subscription
) -> None:
    array = lent(bus, 6)
    broker.cut_off("publisher")
    with pytest.raises(ConnectionClosed):
        bus.flush(PATIENCE_S)
    for _ in range(begin(bus)):
        reader.next(PATIENCE_S)
    goes(bus, array)
    assert array.flags.writeable
    assert same(reader.next(PATIENCE_S).value, of(6))


def test_what_a_topic_refuses_is_refused_there_as_well(
    bus: clients.Client, other: clients.Client, reader: clients.Subscription
) -> None:
    assert goes(bus, lent(bus, 7))
    other.declare("a", max_message_bytes=1000)
    bus.flush(PATIENCE_S)
    array = lent(bus, 8)
    with pytest.raises(LimitExceeded, match="max_message_bytes"):
        goes(bus, array)
    assert reader.next(PATIENCE_S).value[0] == 7


def test_where_a_batch_is_open_the_array_comes_behind_it(bus: clients.Client, reader: clients.Subscription) -> None:
    topic = bus._core.outgoing.topics["a"]
    # A batch from the first message on, which leaves only when something comes behind it.
    topic.burst_messages, topic.batch_window_ns = 0, int(3600e9)
    for number in range(200):
        bus.publish("a", number)
    assert topic.batch is not None
    bus.publish("a", lent(bus, 9))
    assert [reader.next(PATIENCE_S).value for _ in range(200)] == list(range(200))
    assert reader.next(PATIENCE_S).value[0] == 9


def test_with_options_it_goes_the_long_way_and_has_them(bus: clients.Client, reader: clients.Subscription) -> None:
    assert bus.publish("a", lent(bus, 1), ack="accepted") is not None
    bus.publish("a", lent(bus, 2), headers={"step": "2"})
    bus.publish("a", lent(bus, 3), lane="bulk")
    messages = [reader.next(PATIENCE_S) for _ in range(3)]
    found = {(int(message.value[0]), message.headers.get("step"), message.lane) for message in messages}
    assert found == {(1, None, "default"), (2, "2", "default"), (3, None, "bulk")}


def test_what_is_read_is_not_mistaken_for_the_array_before(bus: clients.Client, reader: clients.Subscription) -> None:
    """Messages of the same length, of the same bytes, of the same body: told apart by what is said of them."""
    floats = np.arange(NUMBERS, dtype=np.float64)
    said = [floats, floats.view(np.int64), floats.reshape(-1, 10), floats.reshape(10, -1), floats, floats.tobytes()]
    for value in said:
        bus.publish("a", value.copy() if isinstance(value, np.ndarray) else value, timeout_s=PATIENCE_S)
    bus.publish("a", floats, headers={"x": "y"})
    bus.publish("a", floats)
    for value in said:
        found = reader.next(PATIENCE_S).value
        assert same(found, value) if isinstance(value, np.ndarray) else bytes(found) == value  # type: ignore[call-overload]
        if isinstance(value, np.ndarray):
            assert found.shape == value.shape
    described, plain = reader.next(PATIENCE_S), reader.next(PATIENCE_S)
    assert (described.headers, plain.headers) == ({"x": "y"}, {})
    assert same(described.value, floats)
    assert same(plain.value, floats)


class Sub(np.ndarray):
    """Whose views numpy does not take for views of what they are views of."""


@pytest.mark.parametrize(
    ("view", "keep", "copied"),
    [
        (lambda whole: whole[100:], "whole", True),
        (lambda whole: whole[100:], "another view", True),
        (lambda whole: whole[100:], "a memoryview", True),
        (lambda whole: whole[100:], "nothing", False),
        (lambda whole: whole[::-1][10:][::-1], "nothing", False),
        (lambda whole: whole.reshape(-1, 10).T, "nothing", False),
        (lambda whole: whole[100:].view(Sub), "whole", True),
        (lambda whole: whole[100:], "given away", False),
    ],
)
def test_a_view_is_copied_as_long_as_something_else_may_write_to_it(
    bus: clients.Client,
    reader: clients.Subscription,
    view: Callable[[np.ndarray], np.ndarray],
    keep: str,
    copied: bool,
) -> None:
    whole = lent(bus, 1)
    if keep == "given away":
        bus.publish("b", whole)
    array = view(whole)
    kept = {"another view": lambda: whole[:5], "a memoryview": lambda: memoryview(whole)}.get(keep, lambda: None)()
    if keep not in ("whole", "given away"):
        del whole
    bus.publish("a", array, timeout_s=PATIENCE_S)
    assert array.flags.writeable is copied
    assert same(reader.next(PATIENCE_S).value, np.asarray(array))
    del kept
