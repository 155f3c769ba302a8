"""All-reduce on a board without client and broker, beside MPI in the same loop: what the engine itself takes.

    python -m bench.engine --ranks 2                           the engine
    mpirun -n 2 --oversubscribe python -m bench.engine --mpi   OpenMPI, through the package mpi4py

Sum of float32 in place, after a barrier each; the times are rank 0's, from its call to its return, in microseconds. The
last column is the median of the quietest fortieth of the operations in a row, on a machine that others use as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from broker.collectives import shm
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.transport.shared_memory import SharedMemory

SIZES_AND_COUNTS: Final = ((8, 20_000), (64 << 10, 4000), (1 << 20, 1500), (64 << 20, 40))
TIMEOUT_NS: Final = 60 * 10**9
WINDOWS: Final = 40
WINDOW_MIN: Final = 8

Floats = npt.NDArray[np.float32]


def measure(barrier: Callable[[], object], reduce: Callable[[Floats], object], rank: int, ranks: int) -> None:
    """Runs all sizes; rank 0 prints."""
    for size_bytes, count in SIZES_AND_COUNTS:
        array, times_us = np.empty(size_bytes // 4, np.float32), []
        for index in range(count):
            array.fill(rank + 1)
            barrier()
            called_ns = time.monotonic_ns()
            reduce(array)
            times_us.append((time.monotonic_ns() - called_ns) / 1000)
            if index % 50 == 0 and not (array == ranks * (ranks + 1) / 2).all():
                raise RuntimeError(f"all-reduce {index} of {size_bytes} bytes gave {array}")
        if rank == 0:
            print(line(size_bytes, times_us), flush=True)


def line(size_bytes: int, times_us: list[float]) -> str:
    """One row of figures."""
    length = max(WINDOW_MIN, len(times_us) // WINDOWS)
    windows = [sorted(times_us[at : at + length])[length // 2] for at in range(0, len(times_us) - length + 1, length)]
    ordered = sorted(times_us)
    p10, p50, p90 = (ordered[int(len(ordered) * part)] for part in (0.1, 0.5, 0.9))
    return f"{size_bytes:>9} bytes  p10 {p10:9.1f}  p50 {p50:9.1f}  p90 {p90:9.1f}  quietest {min(windows):9.1f}"


def run_engine(memory: SharedMemory, rank: int, ranks: int) -> None:
    """One rank on a board."""
    engine = shm.Engine(memory.descriptor, memory.size_bytes, ranks, rank)
    meeting = shm.Plan(CollectiveKind.BARRIER, b"barrier", ranks)

    def carry_out(plan: shm.Plan, array: Floats | None) -> None:
        outcome = engine.run(shm.Task(plan, array, array, TIMEOUT_NS))
        if outcome != shm.Outcome.COMMITTED:
            raise RuntimeError(f"an operation ended as {shm.Outcome(outcome).name}")

    plans = {
        size: shm.Plan(
            CollectiveKind.ALL_REDUCE, b"%d" % size, ranks, op=ReduceOp.SUM, dtype="float32", array_bytes=size
        )
        for size, _ in SIZES_AND_COUNTS
    }
    measure(lambda: carry_out(meeting, None), lambda array: carry_out(plans[array.nbytes], array), rank, ranks)


def run_mpi() -> None:
    """One rank of MPI."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    measure(world.Barrier, lambda array: world.Allreduce(MPI.IN_PLACE, array), world.rank, world.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="how many processes")
    parser.add_argument("--mpi", action="store_true", help="this process is a rank that mpirun has started")
    wishes = parser.parse_args()
    if wishes.mpi:
        run_mpi()
        return
    memory = SharedMemory.create(shm.board_bytes(wishes.ranks), common=True)
    shm.format_board(memory.address, wishes.ranks)
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=run_engine, args=(memory, rank, wishes.ranks)) for rank in range(1, wishes.ranks)]
    for other in others:
        other.start()
    run_engine(memory, 0, wishes.ranks)
    for other in others:
        other.join()


if __name__ == "__main__":
    main()
