"""Figures of a GPU: what the machine does, and what publishing, receiving and reducing device arrays does beside it.

One machine, a daemon of its own, both clients in this process; of each thing the best of some repeats, contestants in
turn. Bytes are counted once, however often they are copied.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

import clients
from broker import devices
from broker.limits import MIB
from tests.daemon import Daemon

ARRAY_BYTES: Final = 64 * MIB
REPEATS: Final = 20
RANKS: Final = 2
PATIENCE_S: Final = 60.0


def show() -> None:
    """Prints all figures."""
    import cupy

    source = cupy.asarray(np.arange(ARRAY_BYTES // 4, dtype="float32"))
    target = cupy.empty(source.shape, source.dtype)
    host = devices.to_host(source)

    def on_device() -> None:
        target[...] = source
        cupy.cuda.get_current_stream().synchronize()

    copied = best(on_device)
    line("device to device, no tensorbus", copied)
    line("to pinned host memory", best(lambda: devices.to_host(source)))
    line("from pinned host memory", best(lambda: devices.write_back(target, host)))
    memory = {"TENSORBUS_DEVICE_MEMORY_BYTES": "1GiB"}
    with (
        tempfile.TemporaryDirectory() as folder,
        Daemon(listen=("tcp://127.0.0.1:0", f"unix://{folder}/bus")) as daemon,
        Daemon(listen=(f"unix://{folder}/device",), environment=memory) as in_place,
    ):
        for url, shared, name in (
            (daemon.urls[0], False, "tcp"),
            (daemon.urls[1], True, "unix, shared memory"),
            (in_place.url, True, "unix, device memory"),
        ):
            before = devices.copies()
            taken = published(url, source, shared=shared)
            after = devices.copies()
            line(f"publisher to subscriber, one GPU, {name}", taken)
            rounds = REPEATS + 1
            counts = (after.to_host - before.to_host) / rounds, (after.to_device - before.to_device) / rounds
            print(f"    {copied / taken:.1%} of one copy device to device; of each message, copies", end="")
            print(f" to the host: {counts[0]:g}, to the device: {counts[1]:g}", end="")
            print(f", within it: {(after.within - before.within) / rounds:g}", end="")
            print(f"; detours: {after.detours - before.detours}, not pinned: {after.pageable - before.pageable}")
        line(f"all_reduce, {RANKS} ranks on one GPU, staged, reduced on the host", reduced(daemon.urls[1], source))
        line(f"all_reduce, {RANKS} ranks, of host arrays", reduced(daemon.urls[1], host))
        detours = devices.copies().detours
        taken = reduced(in_place.url, source)
        line(f"all_reduce, {RANKS} ranks on one GPU, reduced there", taken)
        print(f"    {copied / taken:.1%} of one copy device to device; detours: {devices.copies().detours - detours}")


def best(function: Callable[[], object]) -> float:
    """Seconds of the quickest of some calls, after one that is not counted."""
    function()
    times = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        function()
        times.append(time.perf_counter() - start_s)
    return min(times)


def line(what: str, taken_s: float) -> None:
    """Prints one figure."""
    print(f"{what:64} {ARRAY_BYTES / taken_s / 1e9:8.2f} GB/s  {taken_s * 1e3:8.3f} ms for {ARRAY_BYTES // MIB} MiB")


def published(url: str, array: object, *, shared: bool) -> float:
    """Seconds from publish to when the value is on the subscriber's device."""
    with (
        clients.connect(url, shared_memory=shared) as writer,
        clients.connect(url, shared_memory=shared) as reader,
        reader.subscribe("figures", device="cuda:0", queue_bytes=4 * ARRAY_BYTES) as subscription,
        ThreadPoolExecutor(1) as pool,
    ):

        def once() -> object:
            sending = pool.submit(writer.publish, "figures", array)
            value = subscription.next(PATIENCE_S).value
            sending.result(PATIENCE_S)
            return value

        return best(once)


def reduced(url: str, array: object) -> float:
    """Seconds of an all_reduce, as the slowest rank has it; the results are compared with the host's."""
    with ThreadPoolExecutor(RANKS) as pool:
        return max(pool.map(lambda rank: one_rank(url, rank, array), range(RANKS)))


def one_rank(url: str, rank: int, array: object) -> float:
    """One rank's part; every repeat leaves the mean, which is the same."""
    with clients.connect(url) as bus:
        group = bus.group("figures", world_size=RANKS, rank=rank, timeout_s=PATIENCE_S)
        mine = array.copy()  # type: ignore[attr-defined]
        taken = best(lambda: group.all_reduce(mine, "mean", timeout_s=PATIENCE_S))
        found = devices.to_host(mine) if devices.is_device_array(mine) else mine
        expected = devices.to_host(array) if devices.is_device_array(array) else array
        assert np.array_equal(found, expected), "the mean of equal arrays is that array"
        group.leave()
        return taken
