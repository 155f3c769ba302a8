"""A program that forks while it has two clients that are linked with one another; see test_links."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import clients


def main(url: str) -> None:
    buses = [clients.connect(url) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        groups = list(pool.map(lambda rank: buses[rank].group("dp", world_size=2, rank=rank), range(2)))
    child = os.fork()
    if child == 0:
        for bus in buses:
            bus.close()
        sys.exit(0)
    print(f"child: ended {os.waitpid(child, 0)[1]}", flush=True)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda group: group.all_reduce(np.ones(2) + group.rank), groups))
    print(f"parent: {results[0].tolist()} over {groups[0].schedule}", flush=True)
    for bus in buses:
        bus.close()


if __name__ == "__main__":
    main(sys.argv[1])
