"""Arrays from `bus.empty()`: to publish one gives it away, and to publish anything else of its memory does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.limits import MIB, SHARED_AHEAD_BYTES
from tests.clients.conftest import Connect
from tests.clients.publishing.test_shared_memory import NUMBERS, PATIENCE_S, is_shared
from tests.clients.serving import ServingThread


@pytest.fixture(params=["inproc", "unix"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServingThread]:
    addresses = {"inproc": f"inproc://{tmp_path.name}", "unix": f"unix://{tmp_path}/broker.sock"}
    with ServingThread(addresses[request.param]) as serving:
        yield serving


@pytest.fixture
def lent(bus: clients.Client) -> np.ndarray:
    array = bus.empty(NUMBERS, "int64")
    array[:] = 5
    return array


class Torchlike:
    """Something that is no numpy array and shows an array's memory, which it can write to."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def __array_interface__(self) -> dict[str, object]:
        return self.array.__array_interface__


def blocks_in_use(bus: clients.Client) -> int:
    return len({(block.arena.number, block.offset) for block in bus._core.arenas._lent.values()})


@pytest.mark.parametrize(
    "part",
    [lambda array: array[: NUMBERS // 2], lambda array: array.reshape(2, -1), memoryview, Torchlike],
    ids=["part", "view", "memoryview", "other"],
)
def test_another_view_of_it_may_be_changed_when_it_was_published(
    bus: clients.Client, other: clients.Client, lent: np.ndarray, part: object
) -> None:
    subscription = other.subscribe("a")
    bus.publish("a", part(lent))
    value = subscription.next(PATIENCE_S).value
    lent[:] = 6
    assert is_shared(value)
    assert (value == 5).all()
    # It is still the application's to give away.
    bus.publish("a", lent)
    assert not lent.flags.writeable
    assert (subscription.next(PATIENCE_S).value == 6).all()


def test_parts_of_what_is_given_away_are_published_without_a_copy(
    bus: clients.Client, other: clients.Client, lent: np.ndarray
) -> None:
    subscription = other.subscribe("a")
    early = lent[100:]
    bus.publish("a", lent)
    bus.publish("a", lent[: NUMBERS // 2])
    bus.publish("a", early)
    assert not early.flags.writeable
    assert blocks_in_use(bus) == 1
    assert [len(subscription.next(PATIENCE_S).value) for _ in range(3)] == [NUMBERS, NUMBERS // 2, NUMBERS - 100]


def test_a_view_is_given_away_when_it_is_all_that_there_is(
    bus: clients.Client, other: clients.Client, lent: np.ndarray
) -> None:
    subscription = other.subscribe("a")
    kept = bus.empty((100, NUMBERS // 100), "int64").T
    kept[:] = 4
    bus.publish("a", kept)
    assert not kept.flags.writeable
    assert (subscription.next(PATIENCE_S).value == 4).all()


def test_a_request_and_its_reply_give_it_away_as_well(
    bus: clients.Client, other: clients.Client, lent: np.ndarray
) -> None:
    answer = other.empty(NUMBERS, "int64")
    answer[:] = 8
    asked = []

    def respond(message: clients.Message) -> np.ndarray:
        asked.append(message.value)
        return answer

    other.respond("ask", respond)
    reply = bus.request("ask", lent, timeout_s=PATIENCE_S)
    for array in (lent, answer):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 6
    assert (asked[0] == 5).all()
    assert (reply.value == 8).all()


def test_a_message_in_it_that_could_not_be_published_can_be_repeated(
    bus: clients.Client, other: clients.Client, lent: np.ndarray
) -> None:
    bus.declare("a", max_message_bytes=1000)
    subscription = other.subscribe("#")
    bus.publish("a", 1, ack="accepted")
    with pytest.raises(clients.LimitExceeded):
        bus.publish("a", lent)
    bus.publish("b", lent)
    assert subscription.next(PATIENCE_S).value == 1
    assert (subscription.next(PATIENCE_S).value == 5).all()


@pytest.mark.parametrize("shape", [NUMBERS, (NUMBERS,), (2, NUMBERS), [3, 2, NUMBERS], np.int64(NUMBERS)])
@pytest.mark.parametrize("dtype", ["float32", ">i8", np.dtype(("f4", (3,))), [("x", "f4"), ("y", "i8")], "complex64"])
def test_it_has_the_form_that_numpy_gives(bus: clients.Client, shape: object, dtype: object) -> None:
    array, like = bus.empty(shape, dtype), np.empty(shape, dtype)
    assert (array.shape, array.dtype) == (like.shape, like.dtype)
    assert array.flags.writeable


@pytest.mark.parametrize("shape", [(), 0, (0,), (5, 0), (0, 1 << 40)])
def test_it_may_be_empty_or_a_scalar_and_be_published_often(
    bus: clients.Client, other: clients.Client, shape: object
) -> None:
    subscription = other.subscribe("a")
    array = bus.empty(shape, "float64")
    array[...] = 3
    for _ in range(2):
        bus.publish("a", array)
        value = subscription.next(PATIENCE_S).value
        assert value.shape == array.shape
        assert np.array_equal(value, array)


@pytest.mark.parametrize("shape", [-1, (1 << 40, 1 << 40), (NUMBERS, -1)])
def test_what_numpy_cannot_make_is_refused_as_numpy_does(bus: clients.Client, shape: object) -> None:
    with pytest.raises((ValueError, MemoryError)):
        bus.empty(shape)


def test_many_may_be_asked_for_at_once_without_waiting_for_readers_of_none(
    bus: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.connection.operations.SHARED_PATIENCE_S", 3 * PATIENCE_S)
    arrays = [bus.empty(MIB, np.uint8) for _ in range(3 * SHARED_AHEAD_BYTES // MIB)]
    assert bus._core.arenas.lent_bytes == len(arrays) * MIB


def test_ordinary_memory_is_used_again_when_nobody_refers_to_it(connect: Connect) -> None:
    plain = connect("plain", shared_memory=False)
    array = plain.empty((3, MIB), np.int16)
    assert (array.shape, array.dtype, array.flags.writeable) == ((3, MIB), np.int16, True)
    view, first = array[1:], array.ctypes.data
    del array
    other = plain.empty((3, MIB), np.int16)
    assert not np.shares_memory(view, other)
    other[:] = 1
    plain.publish("a", other)
    del view
    assert plain.empty((3, MIB), np.int16).ctypes.data == first


def test_who_comes_over_another_way_gets_ordinary_memory(connect: Connect) -> None:
    plain = connect("plain", shared_memory=False)
    array = plain.empty(NUMBERS)
    plain.publish("a", array)
    assert array.flags.writeable
