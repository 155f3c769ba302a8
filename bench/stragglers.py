"""What a rank that is late in every step costs the others, with and without a quorum.

    python -m bench.stragglers

Ranks in processes of their own, and a broker. A step is a sleep, which stands for the work of an accelerator, and an
all-reduce of the gradients. One rank sleeps longer in every step that it computes; with a quorum it takes the results
that it has missed at once, and what it had computed goes into the next one. The rates are those of rank 0, after ten
steps to warm up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

import clients

TIMEOUT_S: Final = 60.0
WARM_UP_STEPS: Final = 10
"""Until the broker has learned how long to wait, it waits long."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run: how late the last rank is, and the quorum if there is one."""

    name: str
    late_s: float
    quorum: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """What every rank does."""

    ranks: int
    steps: int
    step_s: float
    elements: int


def run_rank(url: str, case: Case, load: Load, rank: int, told: Connection) -> None:
    """One rank; rank 0 tells steps per second and how many contributions a step has had."""
    late_s = case.late_s if rank == load.ranks - 1 else 0.0
    contributions, behind = 0, 0
    with clients.connect(url, name=f"rank-{rank}") as bus:
        group = bus.group(f"{case.name}", world_size=load.ranks, rank=rank, timeout_s=TIMEOUT_S)
        gradients = np.ones(load.elements, np.float32)
        group.barrier()
        started_s = 0.0
        for step in range(-WARM_UP_STEPS, load.steps):
            if step == 0:
                started_s, contributions = time.perf_counter(), 0
            gradients.fill(1.0)
            if behind == 0:
                time.sleep(load.step_s + late_s)
            if case.quorum is None:
                group.all_reduce(gradients, "mean", timeout_s=TIMEOUT_S)
                contributions += load.ranks
            else:
                part = group.all_reduce(
                    gradients, "mean", quorum=case.quorum, contribute=behind == 0, timeout_s=TIMEOUT_S
                )
                contributions += part.contributions
                behind = part.behind
            if not (gradients == 1.0).all():
                raise RuntimeError(f"the mean of ones is {gradients}")
        duration_s = time.perf_counter() - started_s
        if rank == 0:
            told.send((load.steps / duration_s, contributions / load.steps))
        group.barrier(timeout_s=TIMEOUT_S)


def measure(url: str, case: Case, load: Load) -> tuple[float, float]:
    """Runs all ranks; returns what rank 0 tells."""
    context = multiprocessing.get_context("spawn")
    listening, telling = context.Pipe(duplex=False)
    ranks = [context.Process(target=run_rank, args=(url, case, load, rank, telling)) for rank in range(load.ranks)]
    for each in ranks:
        each.start()
    telling.close()
    try:
        rate, contributions = listening.recv()
    finally:
        for each in ranks:
            each.join()
    return rate, contributions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--step-ms", type=float, default=20.0, help="what a step takes without the all-reduce")
    parser.add_argument("--late-ms", type=float, default=100.0, help="how much longer the last rank takes")
    parser.add_argument("--elements", type=int, default=25_000, help="float32 gradients")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case, in turns")
    wishes = parser.parse_args()
    load = Load(wishes.ranks, wishes.steps, wishes.step_ms / 1e3, wishes.elements)
    late_s = wishes.late_ms / 1e3
    cases = [
        Case("all in time, no quorum", 0.0, None),
        Case("all in time, quorum 0.75", 0.0, 0.75),
        Case("one late, no quorum", late_s, None),
        Case("one late, quorum 0.75", late_s, 0.75),
    ]
    serve = [sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as broker:
        assert broker.stdout is not None
        url = broker.stdout.readline().strip().removeprefix("listening on ")
        try:
            for _ in range(wishes.repeats):
                for case in cases:
                    rate, contributions = measure(url, case, load)
                    print(f"{case.name:<26} {rate:7.1f} steps/s  {contributions:5.2f} arrays in a step", flush=True)
        finally:
            broker.terminate()


if __name__ == "__main__":
    main()
