"""One rank of each system that hosts.py measures; rank 0 prints what it has found, as Told.

The wire is what the cables carry with nothing around it: each rank sends to the next one what a ring has to send, which
is 2 (n - 1) / n of the array, and receives as much from the one before, in a thread for each direction. Nothing is
added up.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

WARM: Final = 2
"""The first all-reduces of a rank, which do not count."""
WIRE_PORT: Final = 29300
GLOO_PORT: Final = 29400
BLOCK_BYTES: Final = 1 << 20
DIAL_S: Final = 20.0

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Told:
    """What rank 0 has found.

    Attributes:
        schedule: that was used.
        times_s: of each all-reduce.
        sent_bytes: by its host, for each all-reduce.
        processor_s: of its process, for each all-reduce.
    """

    schedule: str
    times_s: list[float]
    sent_bytes: float
    processor_s: float


def sent_bytes() -> int:
    """What eth0 of this process's host has sent."""
    lines = Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines()
    counters = next(line.partition(":")[2] for line in lines if line.strip().startswith("eth0:"))
    return int(counters.split()[8])


def measure(
    schedule: Callable[[], str],
    barrier: Callable[[], object],
    reduce: Callable[[Floats], object],
    place: tuple[int, int],
    size_bytes: int,
    repeats: int,
    *,
    checked: bool = True,
) -> None:
    """Times all repeats but the first ones; rank 0 prints them.

    Args:
        schedule: names what was used.
        barrier: waits for all ranks.
        reduce: all-reduces an array in place.
        place: this rank, and how many there are.
        size_bytes: of the array.
        repeats: that count.
        checked: whether the array has to be the sum afterwards.
    """
    rank, ranks = place
    array, times_s, processor_s = np.empty(size_bytes // 4, np.float32), [], 0.0
    barrier()
    before_bytes = sent_bytes()
    for index in range(repeats + WARM):
        array.fill(rank + 1)
        barrier()
        used_ns, called_ns = time.process_time_ns(), time.monotonic_ns()
        reduce(array)
        elapsed_s = (time.monotonic_ns() - called_ns) / 1e9
        if index >= WARM:
            times_s.append(elapsed_s)
            processor_s += (time.process_time_ns() - used_ns) / 1e9
        if checked and not (array == ranks * (ranks + 1) / 2).all():
            raise RuntimeError(f"all-reduce of {size_bytes} bytes gave {array}")
    barrier()
    if not rank:
        each = (sent_bytes() - before_bytes) / (repeats + WARM)
        print(json.dumps(asdict(Told(schedule(), times_s, each, processor_s / repeats))), flush=True)
    barrier()


def of_tensorbus(url: str, place: tuple[int, int], size_bytes: int, repeats: int, schedule: str) -> None:
    """One rank of tensorbus."""
    import clients

    rank, ranks = place
    with clients.connect(url, name=f"rank-{rank}") as bus:
        group = bus.group("hosts", world_size=ranks, rank=rank, schedule=schedule)
        measure(lambda: group.schedule, group.barrier, group.all_reduce, place, size_bytes, repeats)
        group.leave()


def of_gloo(address: str, place: tuple[int, int], size_bytes: int, repeats: int) -> None:
    """One rank of torch.distributed over Gloo."""
    import torch
    import torch.distributed as dist

    rank, ranks = place
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{GLOO_PORT}", rank=rank, world_size=ranks)
    measure(
        lambda: "gloo", dist.barrier, lambda array: dist.all_reduce(torch.from_numpy(array)), place, size_bytes, repeats
    )
    dist.destroy_process_group()


def of_mpi(size_bytes: int, repeats: int) -> None:
    """One rank of OpenMPI."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    measure(
        lambda: "mpi", world.Barrier, lambda array: world.Allreduce(MPI.IN_PLACE, array), (world.rank, world.size),
        size_bytes, repeats,
    )  # fmt: skip


def of_wire(addresses: Sequence[str], place: tuple[int, int], size_bytes: int, repeats: int) -> None:
    """One rank of the bare wire; `addresses` are those of the ranks' hosts."""
    rank, ranks = place
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((addresses[rank], WIRE_PORT + rank)))
        right = stack.enter_context(_dial(addresses[(rank + 1) % ranks], WIRE_PORT + (rank + 1) % ranks))
        left = stack.enter_context(server.accept()[0])
        block = np.zeros(BLOCK_BYTES, np.uint8)

        def pass_on(wanted_bytes: int) -> None:
            receiver = threading.Thread(target=_receive, args=(left, wanted_bytes))
            receiver.start()
            for start in range(0, wanted_bytes, BLOCK_BYTES):
                right.sendall(block[: wanted_bytes - start])
            receiver.join()

        def barrier() -> None:
            for _ in range(2):
                if rank:
                    _receive(left, 1)
                right.sendall(b".")
                if not rank:
                    _receive(left, 1)

        moved_bytes = 2 * size_bytes * (ranks - 1) // ranks
        measure(lambda: "wire", barrier, lambda _: pass_on(moved_bytes), place, size_bytes, repeats, checked=False)


def _dial(address: str, port: int) -> socket.socket:
    """Connects as soon as somebody listens there."""
    end_s = time.monotonic() + DIAL_S
    while True:
        try:
            connection = socket.create_connection((address, port))
        except ConnectionRefusedError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.01)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


def _receive(connection: socket.socket, wanted_bytes: int) -> None:
    room = bytearray(min(wanted_bytes, BLOCK_BYTES))
    while wanted_bytes:
        got = connection.recv_into(room, min(wanted_bytes, len(room)))
        if not got:
            raise EOFError("the rank before has gone")
        wanted_bytes -= got
