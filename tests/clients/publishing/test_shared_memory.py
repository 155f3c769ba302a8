"""Large messages in shared memory, with both kinds of client."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.limits import ARENAS_MAX, MIB, SHARED_AHEAD_BYTES, SHARED_BYTES_MIN
from clients.connection import operations
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.descriptors import opened

PATIENCE_S = 60.0
NUMBERS = 50_000
_names = itertools.count()


@pytest.fixture(params=["inproc", "unix"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServingThread]:
    address = f"inproc://shared-{next(_names)}" if request.param == "inproc" else f"unix://{tmp_path}/broker.sock"
    with ServingThread(address) as serving:
        yield serving


def numbers(first: int, count: int = NUMBERS) -> np.ndarray:
    return np.arange(first, first + count)


def is_shared(array: np.ndarray) -> bool:
    return not array.flags.writeable


def shared_files() -> int:
    gc.collect()
    return sum("memfd:tensorbus" in each for each in opened())


def shared_mappings() -> list[str]:
    gc.collect()
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:tensorbus" in line]


def test_two_readers_read_the_memory_that_the_publisher_has_written(
    bus: clients.Client, other: clients.Client, connect: Connect
) -> None:
    readers = [other.subscribe("a"), connect("third").subscribe("a")]
    lent = bus.empty(NUMBERS, "int64")
    lent[:] = 7
    bus.publish("a", lent)
    arrays = [reader.next(PATIENCE_S).value for reader in readers]
    assert all(np.array_equal(array, np.full(NUMBERS, 7)) for array in arrays)
    # There is one memory only: what is written there behind the publisher's own back is what both read.
    place = bus._core.arenas._find(np.frombuffer(lent, np.uint8), lent)
    np.frombuffer(place.block.view(lent.nbytes), np.int64)[:] = 9
    assert all((array == 9).all() for array in arrays)


def test_what_is_lent_can_be_filled_once_and_published_often(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a/#")
    lent = bus.empty((100, 500), np.float32)
    assert lent.shape == (100, 500)
    assert lent.dtype == np.float32
    lent[:] = 3
    bus.publish("a/1", lent)
    with pytest.raises(ValueError, match="read-only"):
        lent[0] = 1
    bus.publish("a/2", lent)
    bus.publish("a/3", lent[10:90])
    values = [subscription.next(PATIENCE_S).value for _ in range(3)]
    assert [value.shape for value in values] == [(100, 500), (100, 500), (80, 500)]
    assert all((value == 3).all() for value in values)
    assert bus._core.arenas.lent_bytes == bus._core.arenas._lent.popitem()[1].arena.block_bytes


def test_what_is_published_from_other_memory_may_be_changed_at_once(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a")
    array = numbers(0)
    for first in range(20):
        array[:] = numbers(first)
        bus.publish("a", array)
    array[:] = -1
    for first in range(20):
        assert np.array_equal(subscription.next(PATIENCE_S).value, numbers(first))


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        np.arange(120_000.0)[::2],
        np.arange(60_000).astype(">f4"),
        np.arange(60_000) % 3 == 0,
        np.arange(60_000, dtype=np.complex64).reshape(3, 4, 5000),
    ],
    ids=["fortran", "strided", "big-endian", "bool", "complex"],
)
def test_arrays_of_every_kind_arrive_as_they_are(bus: clients.Client, other: clients.Client, array: np.ndarray) -> None:
    subscription = other.subscribe("a")
    bus.publish("a", array)
    value = subscription.next(PATIENCE_S).value
    assert is_shared(value)
    assert (value.dtype, value.shape) == (array.dtype, array.shape)
    assert np.array_equal(value, array)


def test_structures_and_bytes_pass_as_well(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a")
    state = {"weights": numbers(0), "step": 3, "nested": [numbers(5, 9), {"bias": np.zeros(3, np.float16)}]}
    bus.publish("a", state)
    value = subscription.next(PATIENCE_S).value
    assert is_shared(value["weights"])
    assert np.array_equal(value["weights"], state["weights"])
    assert np.array_equal(value["nested"][0], numbers(5, 9))
    assert value["step"] == 3
    data = os.urandom(200_000)
    bus.publish("a", data)
    assert subscription.next(PATIENCE_S).value == data


def test_short_arrays_go_through_the_socket_and_may_be_written_to(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a")
    bus.publish("a", np.zeros(SHARED_BYTES_MIN - 1, np.uint8))
    subscription.next(PATIENCE_S).value[:] = 1
    bus.publish("a", np.zeros(SHARED_BYTES_MIN, np.uint8))
    assert is_shared(subscription.next(PATIENCE_S).value)
    assert bus.empty(10).flags.writeable


def test_a_reader_that_keeps_all_that_it_gets_holds_up_nobody(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a")
    kept = []
    for first in range(100):
        bus.publish("a", numbers(first, MIB // 8))
        kept.append(subscription.next(PATIENCE_S).value)
    assert all(np.array_equal(array, numbers(first, MIB // 8)) for first, array in enumerate(kept))
    kept.clear()
    gc.collect()
    bus.publish("a", numbers(0))
    assert np.array_equal(subscription.next(PATIENCE_S).value, numbers(0))


def test_memory_goes_round(bus: clients.Client, other: clients.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine a moment may pass before memory comes back, and then another arena would be made.
    monkeypatch.setattr(operations, "SHARED_PATIENCE_S", PATIENCE_S)
    subscription = other.subscribe("a")
    most = 0
    for first in range(600):
        bus.publish("a", numbers(first, MIB // 8))
        assert subscription.next(PATIENCE_S).value[0] == first
        most = max(most, bus._core.arenas.lent_bytes)
    assert most <= 4 * SHARED_AHEAD_BYTES
    assert len(bus._core.arenas._arenas) == 1


def test_many_lengths_stay_within_the_bounds(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a")
    generator = np.random.default_rng(3)
    for first in range(150):
        count = int(2 ** generator.uniform(12, 20))
        bus.publish("a", numbers(first, count))
        assert np.array_equal(subscription.next(PATIENCE_S).value, numbers(first, count))
        assert len(bus._core.arenas._arenas) <= ARENAS_MAX


def test_who_has_no_room_left_uses_the_socket(
    bus: clients.Client, other: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.publishing.arenas.SHARED_BYTES_MAX", 64 * MIB)
    subscription = other.subscribe("a")
    kept = []
    for first in range(3):
        bus.publish("a", numbers(first, 4 * MIB))
        kept.append(subscription.next(PATIENCE_S).value)
    assert [is_shared(array) for array in kept] == [True, True, False]
    assert all(np.array_equal(array, numbers(first, 4 * MIB)) for first, array in enumerate(kept))


def test_what_the_broker_takes_no_memory_for_comes_once_through_the_socket(
    bus: clients.Client, other: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.state.sharing.ARENAS_MAX", 1)
    subscription = other.subscribe("a")
    lent = bus.empty(4 * NUMBERS, "int64")
    lent[:] = 7
    for count in (NUMBERS, 2 * NUMBERS, 2 * NUMBERS, NUMBERS):
        bus.publish("a", numbers(0, count))
    bus.publish("a", lent)
    bus.publish("a", "end")
    values = [subscription.next(PATIENCE_S).value for _ in range(6)]
    assert [len(value) for value in values[:5]] == [NUMBERS, 2 * NUMBERS, 2 * NUMBERS, NUMBERS, 4 * NUMBERS]
    assert [is_shared(value) for value in values[:5]] == [True, False, False, True, False]
    assert values[5] == "end"
    assert all(np.array_equal(value, numbers(0, len(value))) for value in values[:4])
    assert (values[4] == 7).all()


def test_memory_that_was_not_to_be_had_is_tried_again_later_and_not_before(
    bus: clients.Client, other: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = other.subscribe("a")
    arenas = bus._core.arenas

    def publish(count: int) -> bool:
        bus.publish("a", numbers(0, count))
        value = subscription.next(PATIENCE_S).value
        assert np.array_equal(value, numbers(0, count))
        return is_shared(value)

    assert publish(NUMBERS)
    with monkeypatch.context() as patch:
        patch.setattr("broker.state.sharing.ARENAS_MAX", 1)
        assert not publish(2 * NUMBERS)
    held_bytes = arenas._held_bytes
    assert not publish(2 * NUMBERS)
    assert publish(NUMBERS)
    # What was refused is kept nowhere.
    lengths = [arena.block_bytes * arena.blocks for arena in arenas._arenas.values()]
    assert arenas._held_bytes == held_bytes == sum(lengths)
    wait_a_while(bus)
    assert publish(2 * NUMBERS)

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", no_descriptor)
        assert not publish(4 * NUMBERS)
    assert not publish(4 * NUMBERS)
    assert publish(2 * NUMBERS)
    wait_a_while(bus)
    assert publish(4 * NUMBERS)


def no_descriptor(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def wait_a_while(bus: clients.Client) -> None:
    """As long as it takes until another arena is tried; what was used meanwhile stays."""
    arenas = bus._core.arenas
    for arena in arenas._arenas.values():
        arena.used = True
    arenas._look_ns = 0
    while arenas._full:
        bus.flush(PATIENCE_S)


def test_a_new_broker_gets_new_memory_and_old_arrays_stay_right(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("a")
    bus.publish("a", numbers(1))
    old = subscription.next(PATIENCE_S).value
    before = bus._core.arenas._last_arena
    broker.cut_off("first")
    while True:
        try:
            bus.publish("a", b"back", ack="accepted")
            break
        except clients.ConnectionClosed:
            # What was on its way when the connection ended.
            continue
    assert subscription.next(PATIENCE_S).value == b"back"
    for first in range(2, 6):
        bus.publish("a", numbers(first), ack="accepted")
        assert np.array_equal(subscription.next(PATIENCE_S).value, numbers(first))
    assert bus._core.arenas._last_arena == before + 1
    assert is_shared(old)
    assert np.array_equal(old, numbers(1))


def test_arrays_outlive_their_clients(broker: ServingThread, connect: Connect) -> None:
    publisher, reader = connect("publisher"), connect("reader")
    subscription = reader.subscribe("a")
    lent = publisher.empty(NUMBERS, "int64")
    lent[:] = 5
    publisher.publish("a", lent)
    array = subscription.next(PATIENCE_S).value
    publisher.close()
    reader.close()
    assert (array == 5).all()
    assert (lent == 5).all()


def test_who_wants_none_shares_none(bus: clients.Client, connect: Connect) -> None:
    plain = connect("plain", shared_memory=False)
    subscription = plain.subscribe("a")
    bus.publish("a", numbers(1))
    value = subscription.next(PATIENCE_S).value
    assert not is_shared(value)
    assert np.array_equal(value, numbers(1))
    with bus.subscribe("b") as back:
        plain.publish("b", plain.empty(NUMBERS))
        assert not is_shared(back.next(PATIENCE_S).value)


def test_a_broker_may_share_none(tmp_path: Path) -> None:
    with (
        ServingThread(f"unix://{tmp_path}/broker.sock", shared_memory=False) as serving,
        clients.connect(serving.url) as bus,
        bus.subscribe("a") as subscription,
    ):
        bus.publish("a", numbers(1))
        assert not is_shared(subscription.next(PATIENCE_S).value)


def test_requests_and_replies_share(bus: clients.Client, other: clients.Client) -> None:
    def double(message: clients.Message) -> np.ndarray:
        return message.value * 2

    with_responder = other.respond("double", double)
    reply = bus.request("double", numbers(0), timeout_s=PATIENCE_S)
    assert is_shared(reply.value)
    assert np.array_equal(reply.value, numbers(0) * 2)
    with_responder.close()


def test_replies_that_are_remembered_hold_no_shared_memory(bus: clients.Client, other: clients.Client) -> None:
    other.respond("numbers", lambda message: numbers(message.value, SHARED_BYTES_MIN // 8))
    for first in range(30):
        assert bus.request("numbers", first, timeout_s=PATIENCE_S).value[0] == first
    arenas = other._core.arenas
    assert arenas.has_room(SHARED_BYTES_MIN)
    # What is still on its way, of 30.
    assert arenas.lent_bytes <= 8 * SHARED_BYTES_MIN


def test_threads_publish_at_once(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a/#")

    def publish(thread: int) -> None:
        for first in range(50):
            bus.publish(f"a/{thread}", numbers(first))

    threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    expected = {f"a/{thread}": 0 for thread in range(4)}
    for _ in range(200):
        message = subscription.next(PATIENCE_S)
        assert np.array_equal(message.value, numbers(expected[message.topic]))
        expected[message.topic] += 1
    for thread in threads:
        thread.join(PATIENCE_S)
    assert set(expected.values()) == {50}


def test_latest_only_reads_the_newest_and_lets_go_of_the_rest(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("a", overflow="latest")
    for first in range(200):
        bus.publish("a", numbers(first))
    bus.flush(PATIENCE_S)
    first = -1
    while first < 199:
        value = subscription.next(PATIENCE_S).value
        assert value[0] > first
        first = int(value[0])
        assert np.array_equal(value, numbers(first))


def test_nothing_is_left_when_all_clients_have_gone(broker: ServingThread, connect: Connect) -> None:
    before = shared_files()
    publisher, reader = connect("publisher"), connect("reader")
    subscription = reader.subscribe("a")
    for first in range(5):
        publisher.publish("a", numbers(first, 125_000))
        assert subscription.next(PATIENCE_S).value[0] == first
    assert broker.call(shared_files) == before + 1
    publisher.close()
    reader.close()
    broker.wait_until_idle()
    broker.call(broker.server._look_for_ends)
    assert broker.call(shared_files) == before
    # The topic keeps its newest messages, and so the memory in which they lie, of which they are the most.
    assert len(shared_mappings()) == 1
    broker.call(broker.server.state.router.topics["a"].ring.clear)
    assert shared_mappings() == []


def test_what_topics_retain_of_publishers_that_are_gone_holds_none_of_their_files(
    broker: ServingThread, connect: Connect
) -> None:
    before = shared_files()
    for number in range(12):
        publisher = connect(f"publisher-{number}")
        publisher.publish(f"kept/{number}", numbers(number), ack="accepted")
        publisher.close()
    publisher = None
    broker.wait_until_idle()
    assert broker.call(shared_files) == before
    late = connect("late").subscribe("kept/#", replay="all")
    for number in range(12):
        assert np.array_equal(late.next(PATIENCE_S).value, numbers(number))


def test_a_forked_child_is_not_stopped_by_a_lock_of_its_parents_threads(tmp_path: Path) -> None:
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving, clients.connect(serving.url) as bus:
        bus.publish("a", numbers(1))
        with bus._core.arenas._lock:
            child = os.fork()
            if not child:
                # It has come here, so the handlers after the fork have run.
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        bus.publish("a", numbers(2), ack="accepted")
