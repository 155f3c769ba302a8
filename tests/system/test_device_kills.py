"""Publishers, readers and brokers are killed while arrays pass in memory of a device, which is a stand-in's."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import clients
from broker import devices
from broker.collectives import shm
from broker.limits import MIB
from tests import device_stand_in
from tests import kernel_stand_in as kernels
from tests.clients.serving import ServingThread
from tests.daemon import PATIENCE_S, Daemon, Process
from tests.device_stand_in import StandInDriver
from tests.system import device_rank
from tests.system.device_part import NUMBERS, TOPIC, is_torn

KILLS = 4
LIMIT = 8 * MIB
PART = "tests.system.device_part"


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    return device_stand_in.installed_for_a_test(monkeypatch, PATIENCE_S)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread(
        f"unix://{tmp_path}/bus", device_memory_bytes=LIMIT, ring_messages=1, ring_bytes=1000
    ) as serving:
        yield serving


def array(number: int) -> object:
    return device_stand_in.cupy().array(np.full(NUMBERS, number))


def test_publishers_that_are_killed_leave_whole_arrays_and_no_memory(
    broker: ServingThread, gpus: StandInDriver
) -> None:
    with clients.connect(broker.url) as bus, bus.subscribe(TOPIC, device="cuda:0", queue_messages=4) as subscription:
        for _ in range(KILLS):
            with Process(broker.url, "publish", module=PART) as part:
                for _ in range(8):
                    assert not is_torn(subscription.next(PATIENCE_S))
                assert part.read_line() == "going"
                unread = subscription.next(PATIENCE_S)
                part.kill()
            broker.wait_until_alone(bus, 1)
            assert not is_torn(unread)
            del unread
        bus.publish(TOPIC, array(-1))
        last = subscription.next(PATIENCE_S)
        while last.value.peek()[0] != -1:
            assert not is_torn(last)
            last = subscription.next(PATIENCE_S)
        del last
    assert devices.copies().to_host == 0
    broker.wait_until_idle()
    gc.collect()
    assert gpus.mappings == {}


def test_readers_that_are_killed_give_all_back(broker: ServingThread, caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()
    with clients.connect(broker.url) as bus:

        def publish() -> None:
            number = 0
            while not over.is_set():
                number += 1
                bus.publish(TOPIC, array(number))

        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            for _ in range(KILLS):
                with Process(broker.url, "read", module=PART) as part:
                    assert part.read_line() == "subscribed"
                    assert part.read_line() == "going"
                    part.kill()
        finally:
            over.set()
            publisher.join(PATIENCE_S)
        broker.wait_until_alone(bus, 1)
        with bus.subscribe(TOPIC, device="cuda:0") as subscription:
            bus.publish(TOPIC, array(1))
            assert not is_torn(subscription.next(PATIENCE_S))
            before = devices.copies()
            # More than all memory would hold, if somebody dead still had some.
            for number in range(2 * LIMIT // (NUMBERS * 8)):
                bus.publish(TOPIC, array(number))
                assert subscription.next(PATIENCE_S).value.peek()[0] == number
            assert devices.copies().within > before.within
    assert "no device memory to share is left" not in caplog.text


def test_what_was_received_outlives_the_broker_and_the_next_one_takes_the_same_way(tmp_path: Path) -> None:
    back = threading.Semaphore(0)
    settings = {"TENSORBUS_DEVICE_MEMORY_BYTES": str(LIMIT), "TENSORBUS_RING_BYTES": "1000"}
    with Daemon(listen=(f"unix://{tmp_path}/bus",), admin="off", environment=settings) as daemon:
        with (
            clients.connect(daemon.url, on_reconnect=lambda told: back.release()) as bus,
            clients.connect(daemon.url, on_reconnect=lambda told: back.release()) as other,
            other.subscribe(TOPIC, device="cuda:0") as subscription,
        ):
            for number in range(3):
                bus.publish(TOPIC, array(number))
            unread = [subscription.next(PATIENCE_S) for _ in range(3)]
            daemon.kill()
            daemon.start()
            assert back.acquire(timeout=PATIENCE_S)
            assert back.acquire(timeout=PATIENCE_S)
            other.flush()
            bus.publish(TOPIC, array(3))
            messages = [*unread, subscription.next(PATIENCE_S)]
            assert [message.value.peek()[0] for message in messages] == [0, 1, 2, 3]
            assert not any(map(is_torn, messages))
        assert daemon.errors == "" or "Traceback" not in daemon.errors
    assert devices.copies().to_host == 0


@pytest.mark.skipif(kernels.COMPILER is None, reason="there is no gcc to compile kernels with")
@pytest.mark.skipif(not shm.AVAILABLE, reason="boards take the compiled modules")
@pytest.mark.parametrize("step", device_rank.STEPS)
def test_a_rank_that_is_killed_while_devices_reduce_leaves_the_others_arrays_whole_and_no_memory(
    broker: ServingThread, gpus: StandInDriver, step: str
) -> None:
    with (
        Process(broker.url, step, module="tests.system.device_rank") as other,
        clients.connect(broker.url) as bus,
        bus.group(device_rank.GROUP, world_size=2, rank=0, timeout_s=PATIENCE_S) as group,
        ThreadPoolExecutor(1) as pool,
    ):
        if step not in device_rank.AT_FIRST:
            assert group.all_reduce(device_rank.array(0)).peek().tolist() == [3.0] * device_rank.NUMBERS
        array = device_rank.array(0)
        reducing = pool.submit(group.all_reduce, array)
        assert other.read_line() == "there"
        if step == "writing the result":
            reducing.result(PATIENCE_S)
            assert array.peek().tolist() == [3.0] * device_rank.NUMBERS
            reducing = pool.submit(group.all_reduce, device_rank.array(0))
        other.kill()
        with pytest.raises(clients.GenerationChangedError) as told:
            reducing.result(PATIENCE_S)
        assert told.value.lost_ranks == [1]
        assert array.peek().tolist() == [3.0 if step == "writing the result" else 1.0] * device_rank.NUMBERS
        del reducing
        gc.collect()
        assert gpus.mappings == {}, "also while the error is kept"
        # Alone, and on the device all the same.
        group.all_reduce(array, "mean")
    assert devices.copies().to_host == 0
    gc.collect()
    assert gpus.mappings == {}
