"""Collectives in the memory of a GPU, on a real one: the assumptions of docs/decisions/0057-device-collectives.md, one
by one, and the way over them. Skipped where there is no GPU; `python -m tests.gpu` runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import clients
from broker import devices
from broker.collectives.claims import ITEM_BYTES, ReduceOp
from broker.collectives.reduce import accumulate
from broker.devices import reducing, windows
from broker.devices.memory import DeviceMemory, names
from broker.limits import MIB
from broker.limits_devices import DEVICE_HEADER_BYTES as START
from tests.clients.serving import ServingThread
from tests.gpu.test_gpu_memory import child, made
from tests.test_device_reducing import PAIRS, without_nan_bits
from tests.test_device_reducing import values_of as edges_of

PATIENCE_S = 60.0
RANKS = 2
NUMBERS = 2 * MIB

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread(f"unix://{tmp_path}/bus", device_memory_bytes=512 * MIB) as serving:
        yield serving


def on_ranks(broker: ServingThread, work: Callable[[clients.Group], object], ranks: int = RANKS) -> None:
    """Ranks are threads, each with a client and memory of its own; nothing may have been staged at the end."""
    before = devices.copies()
    with ExitStack() as stack, ThreadPoolExecutor(ranks) as pool:
        buses = [stack.enter_context(clients.connect(broker.url)) for _ in range(ranks)]

        def one(rank: int) -> None:
            with buses[rank].group("ranks", world_size=ranks, rank=rank, timeout_s=PATIENCE_S) as group:
                work(group)
                group.barrier()

        list(pool.map(one, range(ranks)))
    after = devices.copies()
    assert (after.to_host, after.detours) == (before.to_host, before.detours), "no array has seen the host"


def values(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal(NUMBERS).astype("float32")


# Assumptions.


def test_assumed_kernels_have_the_bits_of_the_host() -> None:
    for op, dtype in PAIRS:
        assert device_result(op, dtype) == host_result(op, dtype), (op, dtype)


def device_result(op: ReduceOp, dtype: str) -> bytes:
    import cupy

    sources = [cupy.asarray(np.ascontiguousarray(each)).view("uint8") for each in edges_of(dtype, 3)]
    addresses = cupy.asarray(np.array([each.data.ptr for each in sources], np.uint64))
    found = cupy.zeros(sources[0].nbytes, "uint8")
    reducing.compile_kernel(op, dtype)
    reducing.reduce(op, dtype, addresses, 3, 0, found, found.nbytes // ITEM_BYTES[dtype])
    return without_nan_bits(cupy.asnumpy(found), dtype).tobytes()


def host_result(op: ReduceOp, dtype: str) -> bytes:
    sources = [np.ascontiguousarray(each).view(np.uint8) for each in edges_of(dtype, 3)]
    result = bytearray(sources[0].nbytes)
    accumulate(op, [each.data for each in sources], dtype, 3, result)
    return without_nan_bits(np.frombuffer(result, np.uint8), dtype).tobytes()


def test_assumed_a_kernel_reads_memory_that_was_mapped_to_be_read() -> None:
    import cupy

    own, other = made(), made()
    other.write(START, cupy.full(NUMBERS, 2, "float32"))
    own.write(START, cupy.full(NUMBERS, 1, "float32"))
    mapped = DeviceMemory.adopt(other.descriptor, other.name, other.size_bytes, other.token, own.device)
    window = windows.DeviceWindow([own, mapped], 0)
    out = cupy.zeros(NUMBERS, "float32")
    with windows.working(window.device):
        window.reduce("sum", "float32", START, NUMBERS, out)
    assert bool((out == 3).all())


def test_assumed_memory_that_goes_is_not_in_use_any_more() -> None:
    import cupy

    source, target = cupy.arange(NUMBERS, dtype="float32"), cupy.zeros(NUMBERS, "float32")
    for _ in range(50):
        memory = made()
        window = windows.DeviceWindow([memory], 0)
        with windows.working(window.device):
            windows.put(memory, START, [source])
            window.fill(target, [windows.Piece(0, START, source.nbytes)])
        del memory, window
    assert bool((target == source).all()), "the context is as it was"


def test_assumed_gpus_map_each_others_memory(broker: ServingThread) -> None:
    import cupy

    if len(names()) < RANKS:
        pytest.skip("there is one GPU")
    if not cupy.cuda.runtime.deviceCanAccessPeer(0, 1):
        pytest.skip("the GPUs have no way to one another")

    def work(group: clients.Group) -> None:
        with cupy.cuda.Device(group.rank):
            array = cupy.asarray(values(group.rank))
            group.all_reduce(array)
            assert np.array_equal(cupy.asnumpy(array), values(0) + values(1))

    on_ranks(broker, work)


# The way.


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_all_kinds_have_the_hosts_result(broker: ServingThread, ranks: int) -> None:
    import cupy

    def work(group: clients.Group) -> None:
        host = values(group.rank)[: NUMBERS // ranks * ranks]
        for op in ReduceOp:
            array, expected = cupy.asarray(host), host.copy()
            group.all_reduce(array, op)
            group.all_reduce(expected, op)
            assert cupy.asnumpy(array).tobytes() == expected.tobytes()
        share = group.reduce_scatter(cupy.asarray(host), "mean")
        assert cupy.asnumpy(share).tobytes() == group.reduce_scatter(host, "mean").tobytes()
        for rank, each in enumerate(group.all_gather(cupy.asarray(host))):
            assert np.array_equal(cupy.asnumpy(each), values(rank)[: host.size])
        array = cupy.asarray(host).reshape(2, -1).T if host.size % 2 == 0 else cupy.asarray(host)
        group.broadcast(array, root=0)
        many = [cupy.asarray(host), cupy.ones((7, 3), "float16"), cupy.asarray(host[:5])]
        group.all_reduce(many)
        assert bool((many[1] == ranks).all())

    on_ranks(broker, work, ranks)


def test_what_is_queued_on_a_stream_is_waited_for(broker: ServingThread) -> None:
    import cupy

    def work(group: clients.Group) -> None:
        for _ in range(20):
            with cupy.cuda.Stream(non_blocking=True):
                array = cupy.zeros(NUMBERS, "float32")
                for _ in range(200):
                    array += 1
                group.all_reduce(array)
                array *= 2
                assert bool((array == 2 * RANKS * 200).all())

    on_ranks(broker, work)


def test_tensors_of_torch(broker: ServingThread) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")

    def work(group: clients.Group) -> None:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            tensor = torch.full((1000, 30), 1.0 + group.rank, dtype=dtype, device="cuda")
            assert group.all_reduce(tensor, "mean") is tensor
            assert bool((tensor == 1.5).all())
            group.broadcast(tensor.T, root=1)

    on_ranks(broker, work)


def test_a_rank_in_another_process_that_is_killed(broker: ServingThread) -> None:
    import cupy

    code = """if True:
        import sys, clients, cupy
        from tests.gpu.test_gpu_collectives import values
        group = clients.connect(sys.argv[1]).group("ranks", world_size=2, rank=1)
        while True:
            group.all_reduce(cupy.asarray(values(1)))"""
    before = devices.copies()
    with clients.connect(broker.url) as bus, child(code, broker.url) as other:
        group = bus.group("ranks", world_size=2, rank=0, timeout_s=PATIENCE_S)
        for turn in range(200):
            array = cupy.asarray(values(0))
            try:
                group.all_reduce(array)
            except clients.GenerationChangedError:
                break
            assert np.array_equal(cupy.asnumpy(array), values(0) + values(1))
            if turn == 20:
                other.kill()
        else:
            pytest.fail("nobody has noticed")
        assert np.array_equal(cupy.asnumpy(array), values(0)), "a failed call has changed nothing"
        group.all_reduce(array)
        group.leave()
    assert devices.copies().to_host == before.to_host


def test_nothing_is_left_on_the_device(broker: ServingThread) -> None:
    import cupy

    def work(group: clients.Group) -> None:
        group.all_reduce(cupy.zeros(8 * MIB, "float32"))

    on_ranks(broker, work)
    cupy.get_default_memory_pool().free_all_blocks()
    free, _ = cupy.cuda.runtime.memGetInfo()
    for _ in range(10):
        on_ranks(broker, work)
    cupy.get_default_memory_pool().free_all_blocks()
    assert free - cupy.cuda.runtime.memGetInfo()[0] < 32 * MIB
