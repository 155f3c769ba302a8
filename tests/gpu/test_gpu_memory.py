"""Memory of a GPU that processes share, on a real one: the assumptions of docs/decisions/0056-device-places.md, one by
one, and the way from publisher to reader over it. Skipped where there is no GPU; `python -m tests.gpu` runs it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socketpair

import numpy as np
import pytest

import clients
from broker import devices
from broker.devices import Device
from broker.devices.driver import CudaDriver, driver
from broker.devices.memory import DeviceMemory, names
from broker.limits import MIB
from broker.limits_devices import DEVICE_HEADER_BYTES as START
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0
NUMBERS = 2 * MIB
SIZE = NUMBERS * 4
LIMIT = 512 * MIB

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread(f"unix://{tmp_path}/bus", device_memory_bytes=LIMIT) as serving:
        yield serving


@pytest.fixture
def bus(broker: ServingThread) -> Iterator[clients.Client]:
    with clients.connect(broker.url, name="bus") as client:
        yield client


@pytest.fixture
def other(broker: ServingThread) -> Iterator[clients.Client]:
    with clients.connect(broker.url, name="other") as client:
        yield client


def made(size_bytes: int = SIZE) -> DeviceMemory:
    return DeviceMemory.create(Device(0), {device: name for name, device in names().items()}[Device(0)], size_bytes)


def array(first: int) -> object:
    import cupy

    return cupy.arange(first, first + NUMBERS, dtype="float32")


def is_right(found: object, first: int) -> bool:
    import cupy

    return bool((found == cupy.arange(first, first + NUMBERS, dtype="float32")).all())


@contextmanager
def child(code: str, *arguments: str, descriptors: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs some lines; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, pass_fds=descriptors
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# Assumptions.


def test_assumed_the_driver_names_the_device_and_can_export() -> None:
    assert isinstance(driver(), CudaDriver)
    assert Device(0) in names().values(), "device 0 can export memory as a descriptor"
    print(f"\n    names: {names()}; granularity: {driver().granularity(0)} bytes")


def test_assumed_what_descriptors_are() -> None:
    one, two = made(), made()
    kinds = [os.fstat(memory.descriptor) for memory in (one, two)]
    told = [os.readlink(f"/proc/self/fd/{memory.descriptor}") for memory in (one, two)]
    print(f"\n    descriptors: {told}; same number: {one.identity == two.identity}")
    # Either they are of one character device, and are kept in order, or each has a number of its own.
    assert all(stat.S_ISCHR(kind.st_mode) for kind in kinds) or one.identity != two.identity


def test_assumed_memory_can_be_imported_in_the_process_that_made_it() -> None:
    memory = made()
    reader = DeviceMemory.adopt(memory.descriptor, memory.name, memory.size_bytes, memory.token)
    memory.write(START, array(3))
    assert is_right(reader.view(START, SIZE, None).on(Device(0), np.dtype("float32"), (NUMBERS,), "C"), 3)


def test_assumed_a_length_that_is_not_the_memorys_is_refused() -> None:
    memory = made()
    with pytest.raises(clients.LimitExceeded, match="cannot be mapped"):
        DeviceMemory.adopt(memory.descriptor, memory.name, memory.size_bytes * 2, memory.token)
    with open(os.devnull) as null, pytest.raises(clients.LimitExceeded, match="cannot be mapped"):
        DeviceMemory.adopt(null.fileno(), memory.name, memory.size_bytes, memory.token)
    assert is_right(array(1), 1), "the context is as it was"


def test_assumed_memory_outlives_the_process_that_made_it() -> None:
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    code = """if True:
        import socket, sys, time
        from multiprocessing import reduction
        from tests.gpu.test_gpu_memory import START, array, made
        memory = made()
        memory.write(START, array(7))
        sock = socket.socket(fileno=int(sys.argv[1]))
        reduction.sendfds(sock, [memory.descriptor])
        print(memory.size_bytes, memory.token.hex(), flush=True)
        time.sleep(600)"""
    with child(code, str(theirs.fileno()), descriptors=(theirs.fileno(),)) as maker:
        size_bytes, token = maker.stdout.readline().split()
        (descriptor,) = reduction.recvfds(ours, 1)
        maker.send_signal(signal.SIGKILL)
        maker.wait()
    name = next(name for name, device in names().items() if device == Device(0))
    memory = DeviceMemory.adopt(descriptor, name, int(size_bytes), bytes.fromhex(token))
    os.close(descriptor)
    assert is_right(memory.view(START, SIZE, None).on(Device(0), np.dtype("float32"), (NUMBERS,), "C"), 7)
    ours.close()
    theirs.close()


def test_assumed_nothing_is_left_on_the_device() -> None:
    import cupy

    made()
    cupy.get_default_memory_pool().free_all_blocks()
    before, _ = cupy.cuda.runtime.memGetInfo()
    for _ in range(20):
        memory = made(64 * MIB)
        DeviceMemory.adopt(memory.descriptor, memory.name, memory.size_bytes, memory.token)
    del memory
    after, _ = cupy.cuda.runtime.memGetInfo()
    assert before - after < 64 * MIB


def test_told_whether_a_reader_can_write() -> None:
    """No assumption: it says what a driver does with a mapping that is asked for as read-only."""
    code = """if True:
        import cupy
        from tests.gpu.test_gpu_memory import made, START, DeviceMemory
        memory = made()
        reader = DeviceMemory.adopt(memory.descriptor, memory.name, memory.size_bytes, memory.token)
        try:
            reader._over(cupy, START, 4096)[...] = 1
            cupy.cuda.runtime.deviceSynchronize()
            print("can be written to: the driver has made no read-only mapping")
        except RuntimeError as error:
            print("is read-only:", error)"""
    with child(code) as process:
        said = process.stdout.readline().strip()
    print(f"\n    a reader's mapping {said or 'ended the process'}")
    assert said


# The way.


def test_an_array_goes_to_the_reader_without_the_host(bus: clients.Client, other: clients.Client) -> None:
    before = devices.copies()
    with other.subscribe("a", device="cuda:0", queue_bytes=8 * SIZE) as subscription:
        for first in range(50):
            bus.publish("a", array(first))
            assert is_right(subscription.next(PATIENCE_S).value, first)
    after = devices.copies()
    assert (after.to_host - before.to_host, after.to_device - before.to_device) == (0, 0)
    assert (after.within - before.within, after.detours - before.detours) == (100, 0)


def test_layouts_and_dtypes(bus: clients.Client, other: clients.Client) -> None:
    import cupy

    whole = cupy.arange(4 * MIB, dtype="float64").reshape(2048, 2048)
    before = devices.copies()
    with other.subscribe("a", device="cuda:0", queue_bytes=64 * SIZE) as subscription:
        for part in (whole.T, whole[::2, ::-1], whole.astype("complex128"), (whole % 2).astype(bool)):
            bus.publish("a", part)
            found = subscription.next(PATIENCE_S).value
            assert found.dtype == part.dtype
            assert bool((found == part).all())
    # What the topic keeps goes through the host: the last two have 4 MiB or less.
    assert devices.copies().detours - before.detours <= 1


def test_what_is_queued_on_a_stream_is_waited_for(bus: clients.Client, other: clients.Client) -> None:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with other.subscribe("a", device="cuda:0", queue_bytes=8 * SIZE) as subscription:
        with stream:
            data = cupy.zeros(NUMBERS, dtype="float32")
            for _ in range(500):
                data += 1
            bus.publish("a", data)
            data.fill(-1)
        reading = cupy.cuda.Stream(non_blocking=True)
        with reading:
            found = subscription.next(PATIENCE_S).value
            assert bool((found == 500).all())


def test_memory_that_a_reader_has_let_go_of_is_used_again_only_then(bus: clients.Client, other: clients.Client) -> None:
    import cupy

    with other.subscribe("a", device="cuda:0", queue_bytes=64 * SIZE) as subscription:
        found = []
        for first in range(30):
            bus.publish("a", array(first))
            value = subscription.next(PATIENCE_S).value
            # Queued, and the message let go of while it may not have begun.
            found.append(value * 2)
        assert all(bool((each == 2 * array(first)).all()) for first, each in enumerate(found))
        cupy.cuda.runtime.deviceSynchronize()


def test_a_reader_in_another_process_and_a_publisher_that_is_killed(
    broker: ServingThread, other: clients.Client
) -> None:
    code = """if True:
        import sys, clients
        from tests.gpu.test_gpu_memory import array
        bus, first = clients.connect(sys.argv[1], name="part"), 0
        while True:
            bus.publish("a", array(first))
            first += 1"""
    before = devices.copies()
    with other.subscribe("a", device="cuda:0", queue_messages=4) as subscription:
        with child(code, broker.url):
            for first in range(20):
                assert is_right(subscription.next(PATIENCE_S).value, first)
            unread = subscription.next(PATIENCE_S)
        assert is_right(unread.value, 20)
    after = devices.copies()
    assert (after.to_host, after.to_device) == (before.to_host, before.to_device)


def test_what_is_unread_outlives_the_readers_session(bus: clients.Client, broker: ServingThread) -> None:
    with clients.connect(broker.url) as reader, reader.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", array(1))
        message = subscription.next(PATIENCE_S)
    for first in range(10):
        bus.publish("a", array(50 + first))
    assert is_right(message.value, 1)


def test_a_torch_tensor(bus: clients.Client, other: clients.Client) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    tensor = torch.arange(NUMBERS, dtype=torch.float32, device="cuda")
    before = devices.copies()
    with other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", tensor)
        found = torch.from_dlpack(subscription.next(PATIENCE_S).value)
    assert torch.equal(found, tensor)
    assert devices.copies().to_host == before.to_host


def test_several_threads(bus: clients.Client, other: clients.Client) -> None:
    def work(number: int) -> bool:
        with other.subscribe(f"t/{number}", device="cuda:0", queue_bytes=8 * SIZE) as subscription:
            for first in range(10):
                bus.publish(f"t/{number}", array(first))
                if not is_right(subscription.next(PATIENCE_S).value, first):
                    return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
