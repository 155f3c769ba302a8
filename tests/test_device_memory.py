"""Device memory that is shared: with a stand-in for devices (device_stand_in.py); tests/gpu has the real ones."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from broker import devices
from broker.devices import Copies, Device
from broker.devices.driver import Access, Location, Properties
from broker.devices.memory import DeviceMemory, names
from broker.errors import InvalidValue, LimitExceeded
from broker.limits import KIB
from broker.limits_devices import DEVICE_HEADER_BYTES
from tests import device_stand_in
from tests.cupy_stand_in import Exchanged, Foreign
from tests.device_stand_in import NAMES, STEP_BYTES, StandInDriver

START = DEVICE_HEADER_BYTES


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInDriver]:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(devices.driver, "_drivers", [])
    monkeypatch.setattr(devices, "_counter", devices._Counter())
    return device_stand_in.install()


def adopted(memory: DeviceMemory) -> DeviceMemory:
    return DeviceMemory.adopt(memory.descriptor, memory.name, memory.size_bytes, memory.token)


def test_structures_are_as_the_driver_has_them() -> None:
    assert (ctypes.sizeof(Properties), ctypes.sizeof(Access), ctypes.sizeof(Location)) == (32, 12, 8)
    assert (Properties.handles.offset, Properties.location.offset, Properties.windows.offset) == (4, 8, 16)
    assert (Properties.flags.offset, Access.flags.offset) == (24, 8)


def test_without_a_driver_nothing_can_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.driver, "_drivers", [])
    monkeypatch.setattr(devices.driver, "_LIBRARY", "libnone-of-this-name.so.1")
    with pytest.raises(InvalidValue, match="cannot be shared here"):
        devices.driver.driver()


def test_devices_have_the_names_that_they_have_everywhere(gpus: StandInDriver) -> None:
    assert names() == {NAMES[0]: Device(0), NAMES[1]: Device(1)}


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "float64", "complex64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_goes_through_with_one_copy_in_and_one_out_and_none_of_the_host(
    gpus: StandInDriver, dtype: str, order: str
) -> None:
    cupy, values = device_stand_in.cupy(), np.asarray(np.arange(24).reshape(4, 6), dtype, order=order)
    memory = DeviceMemory.create(Device(1), NAMES[1], 64 * KIB)
    reader = adopted(memory)
    memory.write(START, cupy.array(values, 1))
    payload = reader.view(START, values.nbytes, None)
    found = payload.on(Device(1), values.dtype, values.shape, order)
    assert (found.device.id, found.dtype, found.shape) == (1, values.dtype, values.shape)
    assert np.array_equal(found.peek(), values)
    assert devices.copies() == Copies(within=2, within_bytes=2 * values.nbytes)


def test_the_host_can_touch_none_of_it() -> None:
    code = (
        "import ctypes; from broker.devices import Device; from broker.devices.memory import DeviceMemory;"
        "from tests import device_stand_in as gpus; gpus.install();"
        "memory = DeviceMemory.create(Device(0), gpus.NAMES[0], 4096); ctypes.string_at(memory._address, 1)"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert ended.returncode == -signal.SIGSEGV


def test_a_strided_array_is_packed_on_its_device(gpus: StandInDriver) -> None:
    whole = device_stand_in.cupy().array(np.arange(48.0).reshape(6, 8))
    memory = DeviceMemory.create(Device(0), NAMES[0], 64 * KIB)
    memory.write(START, whole[::2, 1:4])
    found = adopted(memory).view(START, 72, None).on(Device(0), np.dtype("float64"), (3, 3), "C")
    assert np.array_equal(found.peek(), np.arange(48.0).reshape(6, 8)[::2, 1:4])


def test_what_a_producer_has_queued_is_waited_for(gpus: StandInDriver) -> None:
    hidden, stream = np.zeros(4), device_stand_in.cupy().cuda.Stream()
    stream.queued.append(lambda: hidden.fill(7.0))
    memory = DeviceMemory.create(Device(0), NAMES[0], 64 * KIB)
    memory.write(START, Foreign(hidden, stream.ptr))
    hidden.fill(1.0)
    found = memory.view(START, 32, None).on(Device(0), np.dtype("float64"), (4,), "C")
    assert found.peek().tolist() == [7.0] * 4
    by_exchange = Exchanged(np.arange(4.0))
    memory.write(START, by_exchange)
    assert len(by_exchange.streams) == 1


def test_a_reader_copies_on_its_current_stream_and_waits(gpus: StandInDriver) -> None:
    cupy = device_stand_in.cupy()
    memory = DeviceMemory.create(Device(0), NAMES[0], 64 * KIB)
    memory.write(START, cupy.array(np.ones(4)))
    with cupy.cuda.Stream() as stream:
        found = memory.view(START, 32, None).on(Device(0), np.dtype("float64"), (4,), "C")
    assert stream.synchronized == 1
    assert found.peek().tolist() == [1.0] * 4


def test_on_another_device_than_it_lies_on(gpus: StandInDriver) -> None:
    memory = DeviceMemory.create(Device(0), NAMES[0], 64 * KIB)
    memory.write(START, device_stand_in.cupy().array(np.ones(4)))
    found = memory.view(START, 32, None).on(Device(1), np.dtype("float64"), (4,), "C")
    assert (found.device.id, found.peek().tolist()) == (1, [1.0] * 4)
    assert devices.copies() == Copies(within=2, within_bytes=64)


def test_to_the_host_it_is_one_copy(gpus: StandInDriver) -> None:
    memory = DeviceMemory.create(Device(1), NAMES[1], 64 * KIB)
    memory.write(START, device_stand_in.cupy().array(np.arange(4.0), 1))
    assert memory.view(START, 32, None).to_host().view(float).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert devices.copies() == Copies(1, 32, within=1, within_bytes=32)


def test_what_is_kept_stays_when_the_place_is_written_to_again(gpus: StandInDriver) -> None:
    cupy, held = device_stand_in.cupy(), []
    memory = DeviceMemory.create(Device(0), NAMES[0], 64 * KIB)
    reader = adopted(memory)

    class Holder:
        def __del__(self) -> None:
            held.append("over")

    memory.write(START, cupy.array(np.ones(4)))
    payload = reader.view(START, 32, Holder())
    assert held == []
    reader.keep([(START, 32)])
    assert held == ["over"]
    memory.write(START, cupy.array(np.zeros(4)))
    assert payload.on(Device(0), np.dtype("float64"), (4,), "C").peek().tolist() == [1.0] * 4
    reader.keep([(START, 32)])
    assert devices.copies().within == 4


def test_lengths_are_whole_pages_of_the_device(gpus: StandInDriver) -> None:
    assert DeviceMemory.create(Device(0), NAMES[0], STEP_BYTES - DEVICE_HEADER_BYTES).size_bytes == STEP_BYTES
    assert DeviceMemory.create(Device(0), NAMES[0], STEP_BYTES).size_bytes == 2 * STEP_BYTES


def test_a_device_without_memory_says_so(gpus: StandInDriver) -> None:
    gpus.left_bytes = 0
    with pytest.raises(LimitExceeded, match="none to be had on cuda:0: .*OUT_OF_MEMORY"):
        DeviceMemory.create(Device(0), NAMES[0], 1)


def test_memory_that_is_not_what_was_announced_is_refused_and_unmapped(gpus: StandInDriver) -> None:
    memory, other = (DeviceMemory.create(Device(0), NAMES[0], 64 * KIB) for _ in range(2))
    mapped = len(gpus.mappings)
    with pytest.raises(InvalidValue, match="is not the one that was announced"):
        DeviceMemory.adopt(memory.descriptor, memory.name, memory.size_bytes, other.token)
    with pytest.raises(InvalidValue, match="none of this process's devices"):
        DeviceMemory.adopt(memory.descriptor, "another machine's", memory.size_bytes, memory.token)
    with pytest.raises(LimitExceeded, match="cannot be mapped on cuda:0: cuMemMap"):
        DeviceMemory.adopt(memory.descriptor, memory.name, memory.size_bytes + STEP_BYTES, memory.token)
    with pytest.raises(LimitExceeded, match="cannot be mapped"):
        DeviceMemory.adopt(-1, memory.name, memory.size_bytes, memory.token)
    assert len(gpus.mappings) == mapped


def test_with_the_last_reference_mapping_and_descriptor_go(gpus: StandInDriver) -> None:
    memory = DeviceMemory.create(Device(0), NAMES[0], 64 * KIB)
    payload, descriptor = memory.view(START, 8, None), memory.descriptor
    del memory
    assert len(gpus.mappings) == 1
    del payload
    assert gpus.mappings == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_it_outlives_the_process_that_made_it(gpus: StandInDriver) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    maker = multiprocessing.get_context("spawn").Process(target=_make_and_wait, args=(theirs,))
    maker.start()
    try:
        assert ours.poll(60), "the other process has made the memory"
        size_bytes, token = ours.recv()
        descriptor = multiprocessing.reduction.recv_handle(ours)
    finally:
        maker.kill()
        maker.join()
    reader = DeviceMemory.adopt(descriptor, NAMES[0], size_bytes, token)
    os.close(descriptor)
    found = reader.view(START, 32, None).on(Device(0), np.dtype("float64"), (4,), "C")
    assert found.peek().tolist() == [0.0, 1.0, 2.0, 3.0]


def _make_and_wait(pipe: multiprocessing.connection.Connection) -> None:
    device_stand_in.install()
    memory = DeviceMemory.create(Device(0), NAMES[0], 64 * KIB)
    memory.write(START, device_stand_in.cupy().array(np.arange(4.0)))
    pipe.send((memory.size_bytes, memory.token))
    multiprocessing.reduction.send_handle(pipe, memory.descriptor, os.getppid())
    signal.pause()
