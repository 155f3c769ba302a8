"""All-reduce of a list of arrays on a board: from where they lie, beside packing them into one array and out of it.

    python -m bench.lists --ranks 2

Sum of float32 in place, both ways in turn after a barrier each, without client and broker; medians of rank 0's times in
microseconds. The sizes within a list are those of a network's layers: a few long ones and as many short ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from broker.collectives import shm
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.transport.shared_memory import SharedMemory

LISTS: Final = ((8, 64 << 10, 300), (160, 1 << 20, 200), (160, 16 << 20, 40), (160, 100 << 20, 10))
"""Arrays, bytes of all, and rounds."""
TIMEOUT_NS: Final = 60 * 10**9

Floats = npt.NDArray[np.float32]


def layers(count: int, size_bytes: int, value: float) -> list[Floats]:
    """Every other array is short: 1/64 of a long one."""
    long = size_bytes // 4 * 2 * 64 // (65 * count)
    return [np.full(long if each % 2 else max(1, long // 64), value, np.float32) for each in range(count)]


def run_rank(memory: SharedMemory, rank: int, ranks: int) -> None:
    """One rank; rank 0 prints."""
    engine = shm.Engine(memory.descriptor, memory.size_bytes, ranks, rank)
    meeting = shm.Plan(CollectiveKind.BARRIER, b"barrier", ranks)

    def run(plan: shm.Plan, array: object) -> None:
        outcome = engine.run(shm.Task(plan, array, array, TIMEOUT_NS))
        if outcome != shm.Outcome.COMMITTED:
            raise RuntimeError(f"an operation ended as {shm.Outcome(outcome).name}")

    for count, size_bytes, rounds in LISTS:
        arrays = layers(count, size_bytes, rank + 1)
        flat = np.empty(sum(array.size for array in arrays), np.float32)
        plan = shm.Plan(
            CollectiveKind.ALL_REDUCE, b"%d" % flat.size, ranks,
            op=ReduceOp.SUM, dtype="float32", array_bytes=flat.nbytes,
        )  # fmt: skip

        def lying(plan: shm.Plan = plan, arrays: list[Floats] = arrays) -> None:
            run(plan, arrays)

        def packed(plan: shm.Plan = plan, arrays: list[Floats] = arrays, flat: Floats = flat) -> None:
            np.concatenate([array.reshape(-1) for array in arrays], out=flat)
            run(plan, flat)
            start = 0
            for array in arrays:
                array[...] = flat[start : start + array.size]
                start += array.size

        times: dict[Callable[[], None], list[float]] = {lying: [], packed: []}
        for turn in range(2 * rounds):
            way = (lying, packed)[turn % 2]
            for array in arrays:
                array.fill(rank + 1)
            run(meeting, None)
            called_ns = time.monotonic_ns()
            way()
            times[way].append((time.monotonic_ns() - called_ns) / 1000)
            if any((array != ranks * (ranks + 1) / 2).any() for array in arrays):
                raise RuntimeError(f"all-reduce {turn} of {count} arrays is wrong")
        if rank == 0:
            one, other = (statistics.median(times[way]) for way in (lying, packed))
            quiet, other_quiet = (min(times[way]) for way in (lying, packed))
            print(
                f"{count:>4} arrays {flat.nbytes:>10} bytes  p50 lying {one:9.1f}  packed {other:9.1f}   "
                f"least lying {quiet:9.1f}  packed {other_quiet:9.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="how many processes")
    ranks = parser.parse_args().ranks
    memory = SharedMemory.create(shm.board_bytes(ranks), common=True)
    shm.format_board(memory.address, memory.size_bytes, ranks)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_rank, args=(memory, rank, ranks)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
