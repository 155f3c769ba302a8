"""A rank in a process of its own: joins a group, reduces until it is told to stop, and prints what it sees."""

from __future__ import annotations

import sys
import time

import numpy as np

import clients


def main(url: str, rank: int, world_size: int, elements: int, schedule: str = "auto") -> None:
    with clients.connect(url, name=f"rank-{rank}") as bus:
        stop = bus.subscribe("control/stop")
        group = bus.group("ranks", world_size=world_size, rank=rank, timeout_s=30.0, schedule=schedule)
        print(f"joined {group.rank}", flush=True)
        array = np.ones(elements)
        for step in range(1_000_000):
            array[...] = 1.0
            ranks = list(group.ranks)
            try:
                group.all_reduce(array, timeout_s=20.0)
            except clients.GenerationChangedError as error:
                print(f"changed {error.generation} lost={error.lost_ranks} at={time.monotonic_ns()}", flush=True)
                continue
            if step == 5:
                print("running", flush=True)
            # All ranks decide alike: the first one's word counts.
            word = np.array([stop.pending])
            try:
                group.broadcast(word, root=group.ranks[0], timeout_s=20.0)
            except clients.GenerationChangedError as error:
                print(f"changed {error.generation} lost={error.lost_ranks} at={time.monotonic_ns()}", flush=True)
                continue
            if word[0]:
                print(f"stopped total={array[0]:g} ranks={ranks}", flush=True)
                return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
