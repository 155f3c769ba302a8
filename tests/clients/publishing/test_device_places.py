"""Arrays of devices from publisher to reader without a copy in host memory, over a real broker; the devices are
stand-ins (tests/device_stand_in.py), of whose memory the host cannot read a byte."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import clients
from broker import devices
from broker.devices import Copies
from broker.errors import InvalidValue, LimitExceeded
from broker.limits import MIB
from broker.limits_devices import DEVICE_BYTES_MIN
from clients.publishing import device_arenas, device_out
from tests import cupy_stand_in, device_stand_in
from tests.clients.serving import ServingThread
from tests.device_stand_in import StandInDriver

PATIENCE_S = 60.0
NUMBERS = 50_000
SIZE = NUMBERS * 8


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    return device_stand_in.installed_for_a_test(monkeypatch, PATIENCE_S)


@pytest.fixture
def cupy(gpus: StandInDriver) -> ModuleType:
    return device_stand_in.cupy()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    addresses = f"unix://{tmp_path}/bus", "tcp://127.0.0.1:0"
    with ServingThread(*addresses, device_memory_bytes=16 * MIB, ring_messages=1, ring_bytes=1000) as serving:
        yield serving


@pytest.fixture
def bus(broker: ServingThread) -> Iterator[clients.Client]:
    with clients.connect(broker.url, name="bus") as client:
        yield client


@pytest.fixture
def other(broker: ServingThread) -> Iterator[clients.Client]:
    with clients.connect(broker.url, name="other") as client:
        yield client


def numbers(first: int) -> np.ndarray:
    return np.arange(first, first + NUMBERS)


def placed(messages: int, readers: int = 1, others: int = 0) -> Copies:
    """What is counted for messages that have not seen the host: one copy in, and one for each reader."""
    return Copies(within=messages * (1 + readers), within_bytes=messages * (1 + readers) * SIZE, detours=others)


def test_an_array_goes_to_a_reader_on_the_device_and_no_byte_of_it_to_the_host(
    bus: clients.Client, other: clients.Client, cupy: ModuleType
) -> None:
    with other.subscribe("a", device="cuda:0") as subscription:
        for first in range(20):
            bus.publish("a", cupy.array(numbers(first)))
            message = subscription.next(PATIENCE_S)
            found = message.value
            assert (found.device.id, found.shape, message.sequence) == (0, (NUMBERS,), first + 1)
            assert np.array_equal(found.peek(), numbers(first))
    assert devices.copies() == placed(20)
    assert {copy.direction for copy in cupy_stand_in.copies if copy.size_bytes == SIZE} == {"within"}


def test_what_was_published_may_be_changed_and_what_was_read_stays(
    bus: clients.Client, other: clients.Client, cupy: ModuleType
) -> None:
    array, kept = cupy.array(numbers(0)), []
    with other.subscribe("a", device="cuda:0") as subscription:
        for first in range(40):
            array._hidden[:] = numbers(first)
            bus.publish("a", array)
            array._hidden[:] = -1
            kept.append(subscription.next(PATIENCE_S).value)
    assert all(np.array_equal(each.peek(), numbers(first)) for first, each in enumerate(kept))


def test_layout_headers_and_acknowledgement(bus: clients.Client, other: clients.Client, cupy: ModuleType) -> None:
    values = np.asfortranarray(numbers(0).reshape(250, 200))
    with other.subscribe("a", device="cuda:0") as subscription:
        assert bus.publish("a", cupy.array(values), headers={"step": "7"}, ack="accepted") == 1
        message = subscription.next(PATIENCE_S)
        assert (message.headers, message.size_bytes > SIZE) == ({"step": "7"}, True)
        assert message.value.flags.f_contiguous
        assert np.array_equal(message.value.peek(), values)
        bus.publish("a", cupy.array(values)[::2])
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), values[::2])
    assert devices.copies().detours == 0


def test_the_same_client_and_several_readers(bus: clients.Client, other: clients.Client, cupy: ModuleType) -> None:
    with bus.subscribe("a", device="cuda:0") as mine, other.subscribe("#", device="cuda:0") as theirs:
        bus.publish("a", cupy.array(numbers(3)))
        for each in (mine, theirs):
            assert np.array_equal(each.next(PATIENCE_S).value.peek(), numbers(3))
    assert devices.copies() == placed(1, readers=2)


def test_on_another_device_and_on_the_host(bus: clients.Client, other: clients.Client, cupy: ModuleType) -> None:
    with other.subscribe("a", device="cuda:1") as subscription:
        bus.publish("a", cupy.array(numbers(3), 0))
        message = subscription.next(PATIENCE_S)
        assert message.value.device.id == 1
        assert np.array_equal(message.value.peek(), numbers(3))
        assert devices.copies() == placed(1)
        assert np.array_equal(message.value_on("cpu"), numbers(3))
        assert bytes(message.payload) == numbers(3).tobytes()
    assert devices.copies().to_host == 2


def test_who_reads_in_host_memory_gets_everything_and_the_others_too(
    bus: clients.Client, other: clients.Client, cupy: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with other.subscribe("a", device="cuda:0") as on_device:
        bus.publish("a", cupy.array(numbers(0)))
        with other.subscribe("a") as on_host, caplog.at_level(logging.WARNING):
            for first in (1, 2):
                bus.publish("a", cupy.array(numbers(first)))
            assert [message.value[0] for message in (on_host.next(PATIENCE_S), on_host.next(PATIENCE_S))] == [1, 2]
        found = [on_device.next(PATIENCE_S) for _ in range(3)]
        assert [message.sequence for message in found] == [1, 2, 3]
        assert [message.value.peek()[0] for message in found] == [0, 1, 2]
        assert on_device.dropped == 0
    assert devices.copies().detours == 2
    warned = [each.getMessage() for each in caplog.records if "device.detour" in each.getMessage()]
    assert len(warned) == 1
    assert "'other' reads 'a' in host memory" in warned[0]


def test_a_reader_elsewhere_gets_everything(broker: ServingThread, bus: clients.Client, cupy: ModuleType) -> None:
    url = str(broker.server.listeners[1].address)
    with (
        clients.connect(url, shared_memory=False) as far,
        far.subscribe("a", device="cuda:0") as subscription,
    ):
        bus.publish("a", cupy.array(numbers(0)))
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(0))
    assert (devices.copies().to_host, devices.copies().to_device, devices.copies().detours) == (1, 1, 1)


def test_a_subscription_that_begins_between_two_messages(
    bus: clients.Client, other: clients.Client, cupy: ModuleType
) -> None:
    with bus.subscribe("a", device="cuda:0") as first:
        bus.publish("a", cupy.array(numbers(0)))
        with other.subscribe("a", device="cuda:0") as second:
            # It is told of the memory with this one, and gets its bytes; it may have mapped it before the next.
            bus.publish("a", cupy.array(numbers(1)))
            assert np.array_equal(second.next(PATIENCE_S).value.peek(), numbers(1))
            bus.publish("a", cupy.array(numbers(2)))
            assert np.array_equal(second.next(PATIENCE_S).value.peek(), numbers(2))
            assert second.dropped == 0
        assert [first.next(PATIENCE_S).value.peek()[0] for _ in range(3)] == [0, 1, 2]


def test_what_the_broker_refuses_gives_its_memory_back_at_once(
    bus: clients.Client, other: clients.Client, cupy: ModuleType
) -> None:
    """And not when Python looks for circles: until then a publisher would wait for memory that nobody has."""
    bus.publish("a", cupy.array(numbers(0)))
    gc.disable()
    try:
        for number in range(1, 5):
            with other.subscribe("a" if number % 2 else "#", device="cuda:0" if number == 1 else None) as subscription:
                bus.publish("a", cupy.array(numbers(number)))
                assert np.array_equal(np.asarray(read(subscription)), numbers(number))
            bus.flush()
            bus._core.devices._collect()
            assert sum(arena.lent for arena in bus._core.devices._arenas.values()) == len(bus._core.devices._lent)
    finally:
        gc.enable()


def read(subscription: clients.Subscription) -> np.ndarray:
    """The next array, wherever it is."""
    value = subscription.next(PATIENCE_S).value
    return value if isinstance(value, np.ndarray) else value.peek()


def test_when_nobody_needs_bytes_any_more_it_is_asked_again(
    bus: clients.Client, other: clients.Client, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_arenas, "DEVICE_AGAIN_NS", 1 << 60)
    with bus.subscribe("a", device="cuda:0") as subscription:
        with other.subscribe("a"):
            bus.publish("a", cupy.array(numbers(0)))
        bus.publish("a", cupy.array(numbers(1)))
        assert devices.copies().detours == 2
        monkeypatch.setattr(device_arenas, "DEVICE_AGAIN_NS", 0)
        bus._core.devices.put_off("a")
        bus.publish("a", cupy.array(numbers(2)))
        assert [subscription.next(PATIENCE_S).value.peek()[0] for _ in range(3)] == [0, 1, 2]
    assert devices.copies().detours == 2


def test_a_reader_that_does_not_answer_is_not_waited_for_long(
    bus: clients.Client, broker: ServingThread, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_out, "DEVICE_ANSWER_S", 0.05)
    with clients.connect(broker.url) as other, other.subscribe("a", device="cuda:0") as subscription:
        with other._driver.lock:
            # It reads nothing.
            bus.publish("a", cupy.array(numbers(4)))
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(4))
    assert devices.copies().detours == 1


def test_a_topic_that_keeps_values_gets_bytes(bus: clients.Client, other: clients.Client, cupy: ModuleType) -> None:
    bus.declare("kept", retain=True)
    bus.publish("kept", cupy.array(numbers(5)))
    with other.subscribe("kept", device="cuda:0", replay="latest") as subscription:
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(5))
    assert devices.copies().within == 1
    assert devices.copies().detours == 1


def test_queue_groups_and_requests_get_bytes(bus: clients.Client, other: clients.Client, cupy: ModuleType) -> None:
    with other.subscribe("a", device="cuda:0", queue_group="g") as member:
        bus.publish("a", cupy.array(numbers(5)))
        assert np.array_equal(member.next(PATIENCE_S).value.peek(), numbers(5))
    with other.respond("double", lambda message: message.value, device="cuda:0"):
        reply = bus.request("double", cupy.array(numbers(1)), device="cuda:0", timeout_s=PATIENCE_S)
        assert np.array_equal(reply.value.peek(), numbers(1))


def test_a_reader_that_cannot_map_it_gets_bytes(
    bus: clients.Client, other: clients.Client, cupy: ModuleType, gpus: StandInDriver
) -> None:
    gpus.refuses = True
    with other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", cupy.array(numbers(5)))
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(5))
    assert devices.copies().detours == 1


def test_short_arrays_and_those_in_lists_are_staged(
    bus: clients.Client, other: clients.Client, cupy: ModuleType
) -> None:
    with other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", cupy.array(np.zeros(DEVICE_BYTES_MIN // 8 - 1)))
        bus.publish("a", [cupy.array(numbers(5))])
        assert subscription.next(PATIENCE_S).value.shape == (DEVICE_BYTES_MIN // 8 - 1,)
        assert np.array_equal(subscription.next(PATIENCE_S).value[0].peek(), numbers(5))
    assert devices.copies()[4:] == Copies()[4:]


def test_what_cannot_be_read_as_it_lies_is_staged_or_refused_there(
    bus: clients.Client, other: clients.Client, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(value: object) -> object:
        raise InvalidValue("device array", "BufferError", "is not readable: a conjugate")

    monkeypatch.setattr(devices, "form_of", fails)
    with other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", cupy.array(numbers(5)))
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(5))
    assert devices.copies().detours == 1


def test_arguments_are_checked_as_ever(bus: clients.Client, cupy: ModuleType) -> None:
    array = cupy.array(numbers(5))
    for wrong in ({"lane": "fast"}, {"ack": "durable"}, {"priority": 10}, {"headers": {"a": 1}}, {"timeout_s": -1}):
        with pytest.raises(InvalidValue):
            bus.publish("a", array, **wrong)
    with pytest.raises(InvalidValue):
        bus.publish("a/#", array)
    assert bus._core.devices._lent == {}


def test_a_policys_bound_holds(bus: clients.Client, other: clients.Client, cupy: ModuleType) -> None:
    bus.declare("a", max_message_bytes=SIZE - 1)
    with other.subscribe("a", device="cuda:0") as subscription:
        with pytest.raises(LimitExceeded, match="max_message_bytes"):
            bus.publish("a", cupy.array(numbers(4)))
        bus.declare("a", max_message_bytes=SIZE, lane="bulk")
        bus.publish("a", cupy.array(numbers(5)))
        message = subscription.next(PATIENCE_S)
        assert (message.lane, message.value.peek()[0]) == ("bulk", 5)
        assert devices.copies() == Copies(within=3, within_bytes=3 * SIZE)


def test_a_traced_message_is_staged(bus: clients.Client, other: clients.Client, cupy: ModuleType) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", cupy.array(numbers(5)), headers=headers)
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(5))
    assert devices.copies().within == 0


def test_all_memory_in_use_means_bytes(
    bus: clients.Client, other: clients.Client, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_out, "DEVICE_PATIENCE_S", 0.0)
    with other.subscribe("a", device="cuda:0") as subscription:
        for first in range(60):
            bus.publish("a", cupy.array(numbers(first)))
        found = [subscription.next(PATIENCE_S) for _ in range(60)]
        assert [message.value.peek()[0] for message in found] == list(range(60))
    copies = devices.copies()
    assert 0 < copies.detours < 60
    assert copies.to_host == copies.detours


def test_a_device_without_memory_means_bytes(
    bus: clients.Client, other: clients.Client, cupy: ModuleType, gpus: StandInDriver
) -> None:
    gpus.left_bytes = 0
    with other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", cupy.array(numbers(5)))
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(5))
    assert devices.copies().detours == 1


def test_messages_that_are_dropped_give_their_memory_back(
    bus: clients.Client, other: clients.Client, cupy: ModuleType
) -> None:
    with other.subscribe("a", device="cuda:0", overflow="drop_oldest", queue_messages=1) as subscription:
        for first in range(100):
            bus.publish("a", cupy.array(numbers(first)))
        last = subscription.next(PATIENCE_S)
        while last.sequence < 100:
            last = subscription.next(PATIENCE_S)
        assert last.value.peek()[0] == 99
    assert devices.copies().detours == 0


def test_what_is_not_read_yet_outlives_publisher_and_readers_session(
    broker: ServingThread, other: clients.Client, cupy: ModuleType
) -> None:
    with other.subscribe("a", device="cuda:0") as subscription:
        with clients.connect(broker.url) as publisher:
            for first in (1, 2):
                publisher.publish("a", cupy.array(numbers(first)))
        messages = [subscription.next(PATIENCE_S) for _ in range(2)]
        assert messages[0].value.peek()[0] == 1
    other.close()
    assert np.array_equal(messages[1].value.peek(), numbers(2))
    assert devices.copies().to_host == 0


def test_memory_goes_with_the_session_and_what_was_read(
    broker: ServingThread, other: clients.Client, cupy: ModuleType, gpus: StandInDriver
) -> None:
    with other.subscribe("a", device="cuda:0") as subscription:
        with clients.connect(broker.url) as publisher:
            publisher.publish("a", cupy.array(numbers(1)))
            message = subscription.next(PATIENCE_S)
        assert np.array_equal(message.value.peek(), numbers(1))
        del message
        other.flush()
    other.close()
    broker.wait_until_idle()
    gc.collect()
    assert gpus.mappings == {}


def test_a_lost_connection_is_survived(broker: ServingThread, cupy: ModuleType) -> None:
    back = threading.Semaphore(0)

    def connect(name: str) -> clients.Client:
        return clients.connect(broker.url, name=name, on_reconnect=lambda told: back.release())

    with connect("bus") as bus, connect("other") as other, other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", cupy.array(numbers(0)))
        waiting = subscription.next(PATIENCE_S)
        for name in ("bus", "other"):
            broker.cut_off(name)
            assert back.acquire(timeout=PATIENCE_S)
        # The broker has the subscription again.
        other.flush()
        bus.publish("a", cupy.array(numbers(1)))
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(1))
        assert np.array_equal(waiting.value.peek(), numbers(0))
    assert devices.copies().to_host == 0


def test_with_an_asynchronous_client(broker: ServingThread, cupy: ModuleType) -> None:
    async def run() -> None:
        async with await clients.aio.connect(broker.url) as bus:
            subscription = await bus.subscribe("a", device="cuda:0")
            for first in range(5):
                await bus.publish("a", cupy.array(numbers(first)))
                message = await subscription.next(PATIENCE_S)
                assert np.array_equal(message.value.peek(), numbers(first))
            assert devices.copies() == placed(5)

    asyncio.run(run())


def test_several_threads_publish_and_read(bus: clients.Client, other: clients.Client, cupy: ModuleType) -> None:
    def work(number: int) -> list[int]:
        with other.subscribe(f"t/{number}", device="cuda:0") as subscription:
            found = []
            for first in range(20):
                bus.publish(f"t/{number}", cupy.array(numbers(first)))
                found.append(int(subscription.next(PATIENCE_S).value.peek()[0]))
            return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [list(range(20))] * 4


def test_where_it_is_off_nothing_is_shared(tmp_path: Path, cupy: ModuleType, gpus: StandInDriver) -> None:
    with (
        ServingThread(f"unix://{tmp_path}/bus") as broker,
        clients.connect(broker.url) as bus,
        bus.subscribe("a", device="cuda:0") as subscription,
    ):
        bus.publish("a", cupy.array(numbers(1)))
        assert np.array_equal(subscription.next(PATIENCE_S).value.peek(), numbers(1))
    assert devices.copies() == Copies(1, SIZE, 1, SIZE)
    assert gpus.mappings == {}
