"""All-reduce of the engines without client and broker, beside MPI in the same loop: what the engines themselves take.

    python -m bench.engine --ranks 2                           in shared memory
    python -m bench.engine --ranks 2 --ring --lanes 2          over TCP on loopback; --schedule ring or halving
    mpirun -n 2 --oversubscribe python -m bench.engine --mpi   OpenMPI, through the package mpi4py

Sum of float32 in place, after a barrier each; the times are rank 0's, from its call to its return, in microseconds, and
so is the processor time, of one operation on average. `quietest` is the median of the quietest fortieth of the
operations in a row, on a machine that others use as well.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import socket
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from broker.collectives import ring, shm
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.tasks import Outcome, Plan, Task, Turns
from broker.transport.shared_memory import SharedMemory

SIZES_AND_COUNTS: Final = ((8, 20_000), (64 << 10, 4000), (1 << 20, 1500), (64 << 20, 40))
TIMEOUT_NS: Final = 60 * 10**9
WINDOWS: Final = 40
WINDOW_MIN: Final = 8

Floats = npt.NDArray[np.float32]


def measure(barrier: Callable[[], object], reduce: Callable[[Floats], object], rank: int, ranks: int) -> None:
    """Runs all sizes; rank 0 prints."""
    for size_bytes, count in SIZES_AND_COUNTS:
        array, times_us, processor_ns = np.empty(size_bytes // 4, np.float32), [], 0
        for index in range(count):
            array.fill(rank + 1)
            barrier()
            used_ns, called_ns = time.process_time_ns(), time.monotonic_ns()
            reduce(array)
            times_us.append((time.monotonic_ns() - called_ns) / 1000)
            processor_ns += time.process_time_ns() - used_ns
            if index % 50 == 0 and not (array == ranks * (ranks + 1) / 2).all():
                raise RuntimeError(f"all-reduce {index} of {size_bytes} bytes gave {array}")
        if rank == 0:
            print(line(size_bytes, times_us, processor_ns / 1000 / count), flush=True)


def line(size_bytes: int, times_us: list[float], processor_us: float) -> str:
    """One row of figures."""
    length = max(WINDOW_MIN, len(times_us) // WINDOWS)
    windows = [sorted(times_us[at : at + length])[length // 2] for at in range(0, len(times_us) - length + 1, length)]
    ordered = sorted(times_us)
    p10, p50, p90 = (ordered[int(len(ordered) * part)] for part in (0.1, 0.5, 0.9))
    times = f"p10 {p10:9.1f}  p50 {p50:9.1f}  p90 {p90:9.1f}  quietest {min(windows):9.1f}"
    return f"{size_bytes:>9} bytes  {times}  cpu {processor_us:9.1f}"


def run_engine(engine: Turns, rank: int, ranks: int, schedule: str) -> None:
    """One rank of an engine."""
    meeting = Plan(CollectiveKind.BARRIER, b"barrier", ranks)

    def carry_out(plan: Plan, array: Floats | None) -> None:
        outcome = engine.run(Task(plan, array, array, TIMEOUT_NS))
        if outcome != Outcome.COMMITTED:
            raise RuntimeError(f"an operation ended as {Outcome(outcome).name}")

    plans = {
        size: Plan(
            CollectiveKind.ALL_REDUCE, b"%d" % size, ranks,
            op=ReduceOp.SUM, dtype="float32", array_bytes=size, schedule=schedule,
        )
        for size, _ in SIZES_AND_COUNTS
    }  # fmt: skip
    measure(lambda: carry_out(meeting, None), lambda array: carry_out(plans[array.nbytes], array), rank, ranks)


def on_board(ranks: int) -> Callable[[int], Turns]:
    """Makes the engine of a rank in shared memory."""
    memory = SharedMemory.create(shm.board_bytes(ranks), common=True)
    shm.format_board(memory.address, memory.size_bytes, ranks)
    return lambda rank: shm.Engine(memory.descriptor, memory.size_bytes, ranks, rank)


def on_links(ranks: int, lanes: int) -> Callable[[int], Turns]:
    """Makes the engine of a rank over TCP on loopback; once in each process."""
    links: list[list[list[int]]] = [[[] for _ in range(ranks)] for _ in range(ranks)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        for first, second in itertools.combinations(range(ranks), 2):
            for _ in range(lanes if (second - first) % ranks in (1, ranks - 1) else 1):
                links[first][second].append(socket.create_connection(server.getsockname()).detach())
                links[second][first].append(server.accept()[0].detach())
    return lambda rank: ring.Engine(links[rank], rank)


def run_mpi() -> None:
    """One rank of MPI."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    measure(world.Barrier, lambda array: world.Allreduce(MPI.IN_PLACE, array), world.rank, world.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="how many processes")
    parser.add_argument("--mpi", action="store_true", help="this process is a rank that mpirun has started")
    parser.add_argument("--ring", action="store_true", help="over TCP instead of shared memory")
    parser.add_argument("--lanes", type=int, default=1, help="sockets between neighbours")
    parser.add_argument("--schedule", default="auto", help="of all-reduce over TCP")
    wishes = parser.parse_args()
    if wishes.mpi:
        run_mpi()
        return
    ranks = wishes.ranks
    make = on_links(ranks, wishes.lanes) if wishes.ring else on_board(ranks)

    def run(rank: int) -> None:
        run_engine(make(rank), rank, ranks, wishes.schedule)

    context = multiprocessing.get_context("fork")
    others = [context.Process(target=run, args=(rank,)) for rank in range(1, ranks)]
    for other in others:
        other.start()
    run(0)
    for other in others:
        other.join()


if __name__ == "__main__":
    main()
