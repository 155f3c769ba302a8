"""Collectives of arrays of devices whose memory the ranks share, over a real broker; the devices are stand-ins
(tests/device_stand_in.py), of whose memory the host cannot read a byte."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import clients
from broker import devices
from broker.collectives import shm
from broker.devices import windows
from broker.devices.memory import DeviceMemory
from broker.limits import MIB
from clients.collectives import device_handover, device_operations
from tests import device_stand_in
from tests import kernel_stand_in as kernels
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.clients.test_groups import on_all_ranks
from tests.cupy_stand_in import Array
from tests.device_stand_in import StandInDriver

PATIENCE_S = 60.0
RANKS = 3
ELEMENTS = 1000
"""Not a multiple of the ranks."""

pytestmark = [
    pytest.mark.skipif(kernels.COMPILER is None, reason="there is no gcc to compile kernels with"),
    pytest.mark.skipif(not shm.AVAILABLE, reason="boards take the compiled modules"),
]


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    return device_stand_in.installed_for_a_test(monkeypatch, PATIENCE_S)


@pytest.fixture
def cupy(gpus: StandInDriver) -> ModuleType:
    return device_stand_in.cupy()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread(f"unix://{tmp_path}/bus", "tcp://127.0.0.1:0", device_memory_bytes=MIB) as serving:
        yield serving


@pytest.fixture
def connect(broker: ServingThread) -> Iterator[Connect]:
    made: list[clients.Client] = []

    def open_one(name: str) -> clients.Client:
        made.append(clients.connect(broker.url, name=name))
        return made[-1]

    yield open_one
    for client in made:
        client.close()


Work = Callable[[clients.Group, clients.Client], object]


def values(rank: int, dtype: str = "float32", elements: int = ELEMENTS) -> np.ndarray:
    return (np.random.default_rng(rank).standard_normal(elements) * 10).astype(dtype)


def check_none_raised(outcomes: list[object]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def nothing_staged() -> bool:
    copies = devices.copies()
    return (copies.to_host, copies.to_device, copies.detours, copies.pageable) == (0, 0, 0, 0)


def test_an_all_reduce_has_the_bits_of_the_hosts_and_no_byte_sees_the_host(cupy: ModuleType, connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> None:
        for op, dtype in (("sum", "float32"), ("mean", "float16"), ("max", "int16"), ("product", "complex64")):
            host = values(group.rank, dtype)
            array = cupy.array(host)
            assert group.all_reduce(array, op) is array
            assert array.peek().tobytes() == group.all_reduce(host, op).tobytes()

    check_none_raised(on_all_ranks(connect, RANKS, work))
    assert nothing_staged()
    # One copy in, and one out; the shares are reduced where they lie.
    assert devices.copies().within_bytes == RANKS * 2 * ELEMENTS * (4 + 2 + 2 + 8)


def test_layouts_and_out(cupy: ModuleType, connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> None:
        host = values(group.rank).reshape(20, 50)
        whole = cupy.array(np.zeros((40, 50), "float32"))
        strided = whole[::2]
        strided[...] = cupy.array(host)
        out = cupy.array(np.zeros((50, 20), "float32")[:, :].T)
        assert group.all_reduce(strided, out=out) is out
        expected = group.all_reduce(host.copy())
        assert np.array_equal(out.peek(), expected)
        assert np.array_equal(strided.peek(), host)
        group.all_reduce(strided)
        assert np.array_equal(strided.peek(), expected)
        assert not whole.peek()[1::2].any()
        scalar = cupy.array(np.float64(group.rank))
        group.all_reduce(scalar, "max")
        assert scalar.peek() == RANKS - 1

    check_none_raised(on_all_ranks(connect, RANKS, work))
    assert nothing_staged()


def test_lists_and_dicts_go_as_one_whatever_their_dtypes(cupy: ModuleType, connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> None:
        hosts = [values(group.rank, "float32", 7), values(group.rank, "float64", 300), values(group.rank, "float32")]
        arrays = [cupy.array(each) for each in hosts]
        assert group.all_reduce(arrays, "mean") is arrays
        group.all_reduce(hosts, "mean")
        assert all(np.array_equal(array.peek(), host) for array, host in zip(arrays, hosts, strict=True))
        named = {
            "weight": cupy.array(values(group.rank)),
            "empty": cupy.array(np.zeros(0)),
            "bias": cupy.array(hosts[1]),
        }
        group.broadcast(named, root=1)
        assert np.array_equal(named["weight"].peek(), values(1))
        assert np.array_equal(named["bias"].peek(), hosts[1])

    check_none_raised(on_all_ranks(connect, RANKS, work))
    assert nothing_staged()


def test_the_other_kinds(cupy: ModuleType, connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> None:
        host = values(group.rank, "float32", 12).reshape(6, 2)
        share = group.reduce_scatter(cupy.array(host), "sum")
        assert isinstance(share, Array)
        expected = group.reduce_scatter(host, "sum")
        assert np.array_equal(share.peek(), expected)
        out = cupy.array(np.zeros((2, 2), "float32"))
        assert group.reduce_scatter(cupy.array(host), "sum", out=out) is out
        assert np.array_equal(out.peek(), expected)
        found = group.all_gather(cupy.array(host))
        assert all(
            np.array_equal(each.peek(), values(rank, "float32", 12).reshape(6, 2)) for rank, each in enumerate(found)
        )
        whole = cupy.array(np.zeros((RANKS, 6, 2), "float32"))
        assert group.all_gather(cupy.array(host), out=whole) is whole
        assert np.array_equal(whole.peek()[2], values(2, "float32", 12).reshape(6, 2))
        parts = [cupy.array(np.zeros((6, 2), "float32")) for _ in range(RANKS)]
        assert group.all_gather(cupy.array(host), out=parts) is parts
        assert np.array_equal(parts[1].peek(), whole.peek()[1])
        array = cupy.array(host)
        room = cupy.array(np.zeros((6, 2), "float32"))
        assert group.broadcast(array if group.rank == 2 else None, root=2, out=room) is room
        assert np.array_equal(room.peek(), whole.peek()[2])
        assert np.array_equal(array.peek(), host)

    check_none_raised(on_all_ranks(connect, RANKS, work))
    assert nothing_staged()


def test_memory_grows_with_the_arrays_and_goes_with_the_group(
    cupy: ModuleType, gpus: StandInDriver, connect: Connect
) -> None:
    def work(group: clients.Group, bus: clients.Client) -> int:
        for elements in (10, 20_000, 100, 60_000, 60_000):
            array = cupy.array(np.full(elements, float(group.rank + 1), "float32"))
            group.all_reduce(array)
            assert (array.peek() == sum(range(1, RANKS + 1))).all()
        group.barrier()
        held = len(gpus.mappings)
        group.barrier()
        group.leave()
        return held

    outcomes = on_all_ranks(connect, RANKS, work)
    check_none_raised(outcomes)
    assert outcomes == [RANKS * RANKS] * RANKS, "each rank has the memory of all, and only the last one"
    assert gpus.adopted == 3 * RANKS * (RANKS - 1)
    gc.collect()
    assert gpus.mappings == {}
    assert nothing_staged()


def test_ranks_that_ask_for_different_things_are_told_each_others_claims(cupy: ModuleType, connect: Connect) -> None:
    arrays = [cupy.array(values(rank)) for rank in range(2)]

    def differ(group: clients.Group, bus: clients.Client) -> None:
        with pytest.raises(clients.CollectiveMismatchError) as told:
            group.all_reduce(arrays[group.rank], ("sum", "max")[group.rank])
        assert "all_reduce sum float32 (1000,) on devices" in told.value.claims[0]
        assert "all_reduce max float32 (1000,) on devices" in told.value.claims[1]
        with pytest.raises(clients.CollectiveMismatchError) as told:
            group.all_reduce(arrays[0] if group.rank == 0 else values(1))
        assert "on devices" in told.value.claims[0]
        assert told.value.claims[1] == "all_reduce sum float32 (1000,)"
        assert np.array_equal(arrays[group.rank].peek(), values(group.rank))
        group.all_reduce(arrays[group.rank])

    check_none_raised(on_all_ranks(connect, 2, differ))
    assert np.array_equal(arrays[0].peek(), values(0) + values(1))


def test_what_cannot_be_is_refused_as_on_the_host(cupy: ModuleType, connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> None:
        array = cupy.array(values(group.rank))
        for refused in (
            lambda: group.all_reduce(array, priority="high"),
            lambda: group.all_reduce(array, ["sum"]),
            lambda: group.reduce_scatter([array]),
            lambda: group.broadcast(None, root=group.rank, out=array),
        ):
            with pytest.raises(clients.InvalidValue):
                refused()

    check_none_raised(on_all_ranks(connect, 2, work))


def test_a_rank_that_does_not_come_is_named(cupy: ModuleType, connect: Connect) -> None:
    array = cupy.array(values(0))

    def work(group: clients.Group, bus: clients.Client) -> None:
        if group.rank == 0:
            with pytest.raises(clients.RankTimeoutError) as told:
                group.all_reduce(array, timeout_s=0.05)
            assert told.value.missing_ranks == [1]
        group.barrier()

    on_all_ranks(connect, 2, work)
    assert np.array_equal(array.peek(), values(0))


@pytest.mark.parametrize("error", [RuntimeError("cudaErrorLaunchFailure"), KeyboardInterrupt()])
def test_a_rank_that_fails_while_it_reduces_fails_the_call_on_all(
    cupy: ModuleType, connect: Connect, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    arrays, told, reduce = [cupy.array(values(rank)) for rank in range(2)], [], windows.DeviceWindow.reduce

    def fail(window: windows.DeviceWindow, *arguments: object) -> None:
        if window.position == 1 and not told:
            told.append(window)
            raise error
        reduce(window, *arguments)

    monkeypatch.setattr(windows.DeviceWindow, "reduce", fail)

    def work(group: clients.Group, bus: clients.Client) -> None:
        mine, theirs = clients.InvalidValue, (clients.CollectiveError, "the device of rank 1 has failed")
        if isinstance(error, KeyboardInterrupt):
            mine, theirs = KeyboardInterrupt, (clients.CollectiveAbortedError, "the program of rank 1 gave it up")
        expected, text = (mine, ".*") if group.rank else theirs
        with pytest.raises(expected, match=text):
            group.all_reduce(arrays[group.rank])
        assert np.array_equal(arrays[group.rank].peek(), values(group.rank))
        group.all_reduce(arrays[group.rank])

    check_none_raised(on_all_ranks(connect, 2, work))
    assert np.array_equal(arrays[0].peek(), values(0) + values(1))


def test_a_rank_that_was_given_up_while_it_reduced_spoils_nothing_when_it_goes_on(
    cupy: ModuleType, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, gone_on = [cupy.array(values(rank)) for rank in range(2)], threading.Event()
    reduce, stopped = windows.DeviceWindow.reduce, []

    def stop(window: windows.DeviceWindow, *arguments: object) -> None:
        if window.position == 1 and not stopped:
            stopped.append(window)
            assert gone_on.wait(PATIENCE_S)
        reduce(window, *arguments)

    monkeypatch.setattr(windows.DeviceWindow, "reduce", stop)

    def work(group: clients.Group, bus: clients.Client) -> None:
        with pytest.raises(clients.RankTimeoutError) as told:
            group.all_reduce(arrays[group.rank], timeout_s=0.3)
        assert told.value.missing_ranks == [1]
        assert np.array_equal(arrays[group.rank].peek(), values(group.rank))
        if group.rank == 0:
            gone_on.set()
        group.all_reduce(arrays[group.rank], "max")

    check_none_raised(on_all_ranks(connect, 2, work))
    for array in arrays:
        assert np.array_equal(array.peek(), np.maximum(values(0), values(1)))
    assert nothing_staged()


def test_the_next_contribution_leaves_results_alone_that_others_still_read(
    cupy: ModuleType, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, put, laid, results = windows.DeviceWindow.fill, device_operations.put, threading.Event(), {}
    last = threading.local()

    def fill_late(window: windows.DeviceWindow, target: windows.DeviceArray, pieces: list[windows.Piece]) -> None:
        if window.position == 1 and target.size == 100:
            assert laid.wait(PATIENCE_S)
        fill(window, target, pieces)

    def put_and_tell(memory: DeviceMemory, offset: int, views: list[windows.DeviceArray]) -> None:
        put(memory, offset, views)
        if getattr(last, "begun", False):
            cupy.cuda.get_current_stream().synchronize()
            laid.set()

    monkeypatch.setattr(windows.DeviceWindow, "fill", fill_late)
    monkeypatch.setattr(device_operations, "put", put_and_tell)

    def work(group: clients.Group, bus: clients.Client) -> None:
        long, short = (cupy.array(np.full(elements, group.rank + 1, "float32")) for elements in (20_000, 100))
        group.all_reduce(long, "max")
        group.all_reduce(short)
        last.begun = group.rank == 0
        group.all_reduce(long)
        results[group.rank] = short

    check_none_raised(on_all_ranks(connect, 2, work))
    assert [(results[rank].peek() == 3).all() for rank in range(2)] == [True, True]


@pytest.mark.parametrize("why", ["map", "make", "hand", "compile", "device"])
def test_where_there_is_no_way_all_go_through_the_host_and_that_is_said_once(
    why: str, cupy: ModuleType, gpus: StandInDriver, connect: Connect, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    if why == "map":
        gpus.refuses = True
    elif why == "make":
        gpus.left_bytes = device_stand_in.STEP_BYTES
    elif why == "hand":
        monkeypatch.setattr(device_handover, "_is_same_user", lambda sock: False)
    elif why == "compile":
        monkeypatch.setattr(kernels, "COMPILER", "/nowhere/gcc")
        kernels.library.cache_clear()

    def work(group: clients.Group, bus: clients.Client) -> None:
        for _ in range(3):
            array = cupy.array(values(group.rank), group.rank if why == "device" else 0)
            group.all_reduce(array)
            assert np.array_equal(array.peek(), values(0) + values(1))

    with caplog.at_level(logging.WARNING):
        check_none_raised(on_all_ranks(connect, 2, work))
    copies = devices.copies()
    staged = 0 if why == "device" else 6
    assert (copies.to_host, copies.to_device, copies.detours) == (staged, staged, staged)
    said = [record.message for record in caplog.records if "device.detour" in record.message]
    assert len(said) == len(set(said))
    assert bool(said) == bool(staged)


def test_what_the_ranks_have_they_keep_when_there_is_no_more(
    cupy: ModuleType, gpus: StandInDriver, connect: Connect
) -> None:
    def work(group: clients.Group, bus: clients.Client) -> list[int]:
        counts = []
        for elements in (1000, 60_000, 60_000, 1000):
            array = cupy.array(values(group.rank, "float32", elements))
            group.all_reduce(array)
            assert np.array_equal(array.peek(), values(0, "float32", elements) + values(1, "float32", elements))
            group.barrier()
            counts.append(devices.copies().detours)
            gpus.left_bytes = device_stand_in.STEP_BYTES
            group.barrier()
        return counts

    outcomes = on_all_ranks(connect, 2, work)
    check_none_raised(outcomes)
    assert outcomes == [[0, 2, 4, 4]] * 2


def test_what_stays_with_the_host_is_counted(cupy: ModuleType, connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> None:
        array = cupy.array(values(group.rank))
        group.all_reduce(array, async_op=True).wait()
        assert np.array_equal(array.peek(), values(0) + values(1))
        group.reduce(array)
        group.all_gather([array])
        # With their shares of the result they would be too long.
        group.all_reduce(cupy.array(np.zeros(MIB // 4 * 2 // 3, "float32")))
        group.all_reduce(array, quorum=1.0)

    check_none_raised(on_all_ranks(connect, 2, work))
    assert devices.copies().detours == 10


def test_what_is_queued_on_a_stream_is_waited_for(cupy: ModuleType, connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> None:
        with cupy.cuda.Stream():
            array = cupy.array(np.zeros(ELEMENTS, "float32"))
            array[...] = cupy.array(values(group.rank))
            group.all_reduce(array)
            assert np.array_equal(array.peek(), values(0) + values(1))

    check_none_raised(on_all_ranks(connect, 2, work))


def test_tasks_of_an_asynchronous_client_have_their_turns(cupy: ModuleType, broker: ServingThread) -> None:
    async def rank(number: int) -> None:
        async with await clients.aio.connect(broker.url) as bus:
            group = await bus.group("dp", world_size=2, rank=number)
            arrays = [cupy.array(values(number) + each) for each in range(3)]
            await asyncio.gather(*(group.all_reduce(array, "max") for array in arrays))
            for each, array in enumerate(arrays):
                assert np.array_equal(array.peek(), np.maximum(values(0) + each, values(1) + each))
            share = await group.reduce_scatter(cupy.array(values(number)))
            assert np.array_equal(share.peek(), (values(0) + values(1))[number * 500 :][:500])
            assert len(await group.all_gather(share)) == 2
            await group.broadcast(share)
            assert np.array_equal(share.peek(), (values(0) + values(1))[:500])
            await group.leave()

    async def both() -> None:
        await asyncio.wait_for(asyncio.gather(rank(0), rank(1)), PATIENCE_S)

    asyncio.run(both())
    assert nothing_staged()
