"""Asynchronous all-reduces while the program's main thread computes in pure Python, beside a main thread that sleeps.

    python -m bench.spinning --ranks 2

Each rank is a process with a client of a broker that is started for this. It starts one all-reduce after the other
with async_op=True. In one round it polls `done` in a loop that never gives Python's lock away, in the next it sleeps in
`wait`. The ratio of both says what a program that computes costs its collectives; 1 is nothing. On a machine with fewer
processors than twice the ranks, the computing threads take processors from the engines', and the ratio says that too.
Each round and the one after it are a pair, so that what else the machine does meets both alike: the ratio is the median
of the pairs' ratios, with their quartiles.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Final

import numpy as np

import clients

SIZES_AND_ROUNDS: Final = ((4 << 10, 40), (1 << 20, 40), (64 << 20, 12))
IN_A_ROUND: Final = 5
NEVER_S: Final = 1000.0
"""Between two switches of Python's threads: a thread that computes keeps the lock."""


def one_us(group: clients.Group, array: np.ndarray, *, spins: bool) -> float:
    """The time of one all-reduce, from its start to the moment in which the program sees its end."""
    group.barrier()
    before = sys.getswitchinterval()
    began_ns = time.monotonic_ns()
    if spins:
        sys.setswitchinterval(NEVER_S)
    work = group.all_reduce(array, op="max", async_op=True)
    while spins and not work.done:
        pass
    sys.setswitchinterval(before)
    work.wait()
    return (time.monotonic_ns() - began_ns) / 1000


def run_rank(url: str, rank: int, ranks: int) -> None:
    """One rank; rank 0 prints."""
    with clients.connect(url, name=f"rank-{rank}") as bus:
        group = bus.group("spinning", world_size=ranks, rank=rank, schedule="shm")
        for size, rounds in SIZES_AND_ROUNDS:
            array = np.full(size // 4, rank, np.float32)
            pairs = [
                [
                    statistics.median(one_us(group, array, spins=spins) for _ in range(IN_A_ROUND))
                    for spins in (False, True)
                ]
                for _ in range(rounds)
            ]
            asleep, computing = (statistics.median(times) for times in zip(*pairs, strict=True))
            low, ratio, high = statistics.quantiles([after / before for before, after in pairs], n=4)
            if rank == 0:
                print(
                    f"{size:>9} bytes  p50 asleep {asleep:9.1f} us  p50 computing {computing:9.1f} us  "
                    f"ratio {ratio:5.2f}, quartiles {low:.2f} to {high:.2f}, {rounds} pairs",
                    flush=True,
                )
        group.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="how many processes")
    ranks = parser.parse_args().ranks
    print(f"{ranks} ranks, {len(os.sched_getaffinity(0))} processors", flush=True)
    with tempfile.TemporaryDirectory(prefix="tensorbus-bench-") as directory:
        url = f"unix://{directory}/socket"
        command = [sys.executable, "-m", "broker", "serve", "--listen", url, "--admin", "off"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as broker:
            assert broker.stdout is not None
            broker.stdout.readline()
            context = multiprocessing.get_context("fork")
            processes = [context.Process(target=run_rank, args=(url, rank, ranks)) for rank in range(ranks)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            broker.terminate()


if __name__ == "__main__":
    main()
